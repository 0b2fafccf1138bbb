from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from tunesmith.models.attention import Asked
from tunesmith.models.cache import Prefix, RowCache
from tunesmith.models.serving import Decode, Prefill, RowSpan, neighbours

HEADS, KV_HEADS, WIDTH = 4, 2, 8
ASKED = {
    "plain": Asked(0, 0.4),
    "window": Asked(0, 0.4, window=6),
    "softcap": Asked(0, 0.4, softcap=1.5),
    "sinks": Asked(0, 0.4, sinks=torch.tensor([0.5, -1.0, 2.0, 0.0], dtype=torch.float64)),
}


@dataclass
class Row:
    """One row's queries, keys and values from its first token on, (H, T, D)."""

    q: Tensor
    k: Tensor
    v: Tensor


def row(length: int, like: Row | None = None, common: int = 0) -> Row:
    """Random tokens; the first `common` ones are those of another row."""
    made = Row(*(torch.randn(n, length, WIDTH).double() for n in (HEADS, KV_HEADS, KV_HEADS)))
    if like is not None:
        for mine, theirs in ((made.q, like.q), (made.k, like.k), (made.v, like.v)):
            mine[:, :common] = theirs[:, :common]
    return made


def causal(whole: Row, asked: Asked) -> Tensor:
    """Dense causal attention of one row."""
    repeat = HEADS // KV_HEADS
    k, v = whole.k.repeat_interleave(repeat, 0), whole.v.repeat_interleave(repeat, 0)
    scores = whole.q @ k.transpose(1, 2) * asked.scale
    if asked.softcap:
        scores = asked.softcap * torch.tanh(scores / asked.softcap)
    length = whole.q.shape[1]
    distance = torch.arange(length)[:, None] - torch.arange(length)[None, :]
    hidden = (distance < 0) | (distance >= (asked.window or length))
    scores = scores.masked_fill(hidden, -math.inf)
    if asked.sinks is not None:
        scores = torch.cat([scores, asked.sinks[:, None, None].expand(-1, length, 1)], -1)
    return torch.softmax(scores, -1)[..., :length] @ v


@pytest.mark.parametrize("name", ASKED)
def test_prefill_and_decode_equal_causal_attention_behind_a_shared_prefix(name: str) -> None:
    asked = ASKED[name]
    torch.manual_seed(0)
    above = 10
    first = row(19)
    rows = [first, row(15, first, above), row(4)]
    cache, prefix = RowCache(torch.device("cpu")), Prefix(above)
    cache.reserve(4, 16)

    def attend(structure: Prefill | Decode, parts: list[tuple[Row, slice]], filler: int) -> Tensor:
        def joined(tensors: list[Tensor]) -> Tensor:
            x = torch.cat(tensors, 1)
            return torch.cat([x, torch.zeros(len(x), filler, WIDTH).double()], 1)

        q, k, v = (
            joined([getattr(item, key)[:, part] for item, part in parts]) for key in ("q", "k", "v")
        )
        return structure.attend(q, k, v, asked)

    def ids(count: int) -> tuple[int, ...]:
        return (0,) * count

    # The prefix by itself, then all rows but for their last two tokens, then these one by one.
    span = RowSpan(ids(above), None, None, slot=None, into=prefix)
    out = attend(Prefill([span], cache), [(first, slice(0, above))], 3)
    torch.testing.assert_close(out[:, :above], causal(first, asked)[:, :above])

    starts, prefixes = (above, above, 0), (prefix, prefix, None)
    lengths = [item.q.shape[1] - start - 2 for item, start in zip(rows, starts, strict=True)]
    spans = [
        RowSpan(ids(length), None, above_it, slot=slot)
        for slot, (length, above_it) in enumerate(zip(lengths, prefixes, strict=True))
    ]
    parts = [
        (item, slice(start, start + length))
        for item, start, length in zip(rows, starts, lengths, strict=True)
    ]
    out = attend(Prefill(spans, cache), parts, 5)
    wanted = torch.cat([causal(item, asked)[:, part] for item, part in parts], 1)
    torch.testing.assert_close(out[:, : wanted.shape[1]], wanted)

    for step in range(2):
        now = [length + step for length in lengths]
        places = [slice(start + n, start + n + 1) for start, n in zip(starts, now, strict=True)]
        parts = list(zip(rows, places, strict=True))
        out = attend(Decode(cache, now, prefixes), parts, 1)
        wanted = torch.cat([causal(item, asked)[:, part] for item, part in parts], 1)
        torch.testing.assert_close(out[:, :3], wanted)


@pytest.mark.parametrize(
    ("spans", "runs"),
    [
        ([128, 128, 128], [(0, 3, 128)]),
        # One more row of 256 would read 128 keys too many for each of three: more than a call.
        ([128, 128, 128, 256], [(0, 3, 128), (3, 4, 256)]),
        ([128, 128, 256], [(0, 3, 256)]),
        ([1024, 128, 128], [(0, 1, 1024), (1, 3, 128)]),
    ],
)
def test_rows_of_like_length_are_read_together(
    spans: list[int], runs: list[tuple[int, int, int]]
) -> None:
    assert [(rows.start, rows.stop, span) for rows, span in neighbours(spans)] == runs


def test_rows_of_any_length_side_by_side_decode_as_each_alone() -> None:
    """Runs of several spans, in an order in which neighbours differ."""
    torch.manual_seed(0)
    lengths = [300, 5, 130, 4, 700, 699, 6]
    rows = [row(length + 1) for length in lengths]
    cache = RowCache(torch.device("cpu"))
    cache.reserve(len(rows), max(lengths) + 1)
    asked = ASKED["plain"]
    for slot, (item, length) in enumerate(zip(rows, lengths, strict=True)):
        span = RowSpan((0,) * length, None, None, slot=slot)
        parts = (x[:, :length] for x in (item.q, item.k, item.v))
        Prefill([span], cache).attend(*parts, asked)
    last = (torch.cat([getattr(item, x)[:, -1:] for item in rows], 1) for x in ("q", "k", "v"))
    out = Decode(cache, lengths, [None] * len(rows)).attend(*last, asked)
    wanted = torch.cat([causal(item, asked)[:, -1:] for item in rows], 1)
    torch.testing.assert_close(out, wanted)
