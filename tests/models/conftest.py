"""What tests of attention share: the forest's mask written out."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tunesmith.models.attention import Asked
from tunesmith.models.tree import PackedBatch, visible

Reference = Callable[[Tensor, Tensor, Tensor, PackedBatch, Asked], Tensor]


@pytest.fixture(scope="session")
def reference() -> Reference:
    """Attention with one dense mask of T x T."""

    def dense(q: Tensor, k: Tensor, v: Tensor, batch: PackedBatch, asked: Asked) -> Tensor:
        repeat = len(q) // len(k)
        k, v = k.repeat_interleave(repeat, 0), v.repeat_interleave(repeat, 0)
        scores = q @ k.transpose(1, 2) * asked.scale
        if asked.softcap is not None:
            scores = asked.softcap * torch.tanh(scores / asked.softcap)
        mask = torch.from_numpy(visible(batch))
        if asked.window is not None:
            depth = torch.from_numpy(batch.depth)
            mask = mask & (depth[:, None] - depth[None, :] < asked.window)
        scores = scores.masked_fill(~mask.to(q.device), -math.inf)
        if asked.sinks is not None:
            scores = torch.cat([scores, asked.sinks[:, None, None].expand(-1, len(mask), 1)], -1)
        return torch.softmax(scores, -1)[..., : len(mask)] @ v

    return dense
