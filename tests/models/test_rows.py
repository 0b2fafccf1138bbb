from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tunesmith.errors import ModelError
from tunesmith.models.load import LoadedModel, load
from tunesmith.models.rows import Past, Rows
from tunesmith.models.template import Chain
from tunesmith.models.tree import PackedBatch, plant

CPU = torch.device("cpu")


def batch_of(*lengths: int) -> PackedBatch:
    """Rows of random tokens, not in the order of their lengths."""
    torch.manual_seed(0)
    drawn = [tuple(torch.randint(0, 256, (length,)).tolist()) for length in lengths]
    return plant([Chain(ids, (False,) * len(ids)) for ids in drawn], share=False)


@pytest.fixture
def rows(apart: Callable[[str], Path]) -> Rows:
    rows = load(apart("lfm2"), dtype="float32").rows
    assert rows is not None
    return rows


@torch.no_grad()
def test_padded_rows_and_rows_one_at_a_time_are_the_same_in_the_batchs_order(rows: Rows) -> None:
    batch = batch_of(40, 3, 90, 41, 8)
    padded, single = (replace(rows, padded=on).hidden(batch, CPU) for on in (True, False))
    torch.testing.assert_close(padded, single)
    start = 0
    for length in (40, 3, 90, 41, 8):
        (found, _) = rows.read(batch.ids[start : start + length].tolist(), {}, CPU)
        torch.testing.assert_close(single[start : start + length], found)
        start += length


def test_rows_of_like_length_go_together_and_carry_little_padding(rows: Rows) -> None:
    shapes: list[torch.Size] = []

    def see(_module: Any, _args: Any, kwargs: dict[str, Tensor]) -> None:
        shapes.append(kwargs["input_ids"].shape)

    hook = rows.module.base_model.register_forward_pre_hook(see, with_kwargs=True)
    lengths = (200, 5, 190, 6, 180, 4)
    rows.hidden(batch_of(*lengths), CPU)
    hook.remove()
    # In sixteens.
    assert sorted(shapes) == [(3, 16), (3, 208)]


def test_a_batch_whose_rows_share_tokens_is_refused(rows: Rows) -> None:
    chains = [Chain((*range(50), n), (False,) * 50 + (True,)) for n in range(3)]
    with pytest.raises(ModelError, match=r"layers of conv; expected rows laid out apart"):
        rows.hidden(plant(chains), CPU)


@torch.no_grad()
@pytest.mark.parametrize("cached", [True, False])
def test_a_row_goes_on_from_what_was_kept_of_it(rows: Rows, *, cached: bool) -> None:
    rows = replace(rows, cached=cached)
    ids = batch_of(30).ids.tolist()
    whole, _ = rows.read(ids, {}, CPU)
    past: Past = {}
    first, past = rows.read(ids[:20], past, CPU)
    assert bool(past) == cached
    if cached:
        parts = [first]
        for token in ids[20:]:
            part, past = rows.read([token], past, CPU)
            parts.append(part)
        torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-4, atol=1e-5)


def test_padding_and_neighbours_have_no_gradient(apart: Callable[[str], Path]) -> None:
    """A row's hidden states are told from its own tokens, in every family that takes padding."""
    model: LoadedModel = load(apart("falcon_h1"), dtype="float32")
    table = model.module.get_input_embeddings()
    table.weight.requires_grad_(True)
    chains = [Chain((n,) * count, (False,) * count) for n, count in ((7, 20), (9, 12))]
    batch = plant(chains, share=False)
    hidden = model.forest(batch)[:20]
    weigh = torch.linspace(-1, 2, hidden.numel()).view_as(hidden)
    (grad,) = torch.autograd.grad((hidden * weigh).sum(), table.weight)
    assert torch.nonzero(grad.any(1)).flatten().tolist() == [7]
