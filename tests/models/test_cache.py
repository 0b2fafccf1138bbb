from __future__ import annotations

import torch

from tunesmith.models.cache import BLOCK, ROWS, RowCache


def test_growing_keeps_what_is_there_and_moving_copies_a_row() -> None:
    cache = RowCache(torch.device("cpu"))
    cache.reserve(3, 5)
    assert cache.capacity == BLOCK
    k, v = torch.ones(2, 1, 4), torch.ones(2, 1, 6)
    keys, values = cache.layer(0, k, v)
    assert (keys.shape, values.shape) == ((ROWS, 2, BLOCK, 4), (ROWS, 2, BLOCK, 6))
    keys[2, :, :5] = torch.arange(5.0)[None, :, None]
    cache.reserve(ROWS + 1, BLOCK + 1)
    assert (cache.rows, cache.capacity) == (2 * ROWS, 2 * BLOCK)
    cache.move(2, 0, 5)
    keys, _ = cache.layer(0, k, v)
    assert keys[0, 0, :6, 0].tolist() == [0, 1, 2, 3, 4, 0]
    assert torch.isfinite(keys).all()


def test_room_that_is_there_is_not_made_again() -> None:
    cache = RowCache(torch.device("cpu"))
    cache.reserve(1, 100)
    first = cache.layer(0, torch.ones(1, 1, 2), torch.ones(1, 1, 2))[0]
    cache.reserve(ROWS, BLOCK)
    assert cache.layer(0, torch.ones(1, 1, 2), torch.ones(1, 1, 2))[0] is first
