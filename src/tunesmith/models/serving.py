"""The two structures of serving: taking in prompts, and one more token for each row.

Both see a row as a shared prefix and its own tokens, computed apart and joined by their
log-sum-exp. Each row is computed in a shape that depends on that row alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tunesmith.models.attention import Asked
from tunesmith.models.cache import KeyValues, Prefix, RowCache
from tunesmith.models.kernels import behind, exact, flash, hide, join


@dataclass(frozen=True, slots=True)
class RowSpan:
    """Tokens of one row in a pass: behind `prefix`, kept in the cache's `slot` or `into`."""

    ids: tuple[int, ...]
    adapter: str | None
    prefix: Prefix | None
    slot: int | None
    into: Prefix | None = None

    @property
    def above(self) -> int:
        """Tokens before the first of the span."""
        return self.prefix.length if self.prefix else 0


class Prefill:
    """Rows one behind the other, each causal and behind its prefix; the rest is padding."""

    def __init__(self, spans: Sequence[RowSpan], cache: RowCache) -> None:
        self._spans, self._cache = spans, cache

    def attend(self, q: Tensor, k: Tensor, v: Tensor, asked: Asked) -> Tensor:
        """See attention.Structure."""
        out = q.new_zeros(q.shape[1], len(q), v.shape[-1])
        start = 0
        for span in self._spans:
            part = slice(start, start + len(span.ids))
            self._keep(span, asked.layer, k[:, part], v[:, part])
            own = q[None, :, part], k[None, :, part], v[None, :, part]
            path = _layer(span.prefix, asked.layer)
            out[part] = _plain(*own, path, asked) if asked.plain else _any(*own, path, asked)
            start = part.stop
        return out.transpose(0, 1)

    def _keep(self, span: RowSpan, layer: int, k: Tensor, v: Tensor) -> None:
        if span.into is not None:
            span.into.layers[layer] = k.clone(), v.clone()
        if span.slot is not None:
            keys, values = self._cache.layer(layer, k, v)
            keys[span.slot, :, : len(span.ids)] = k
            values[span.slot, :, : len(span.ids)] = v


SPAN = 32
"""Rows are read to a multiple of this many keys."""
CALL = 256
"""Keys that one more row could read in the time that one more call of the kernel takes."""


class Decode:
    """One token for each active row; the rest is padding."""

    def __init__(
        self, cache: RowCache, lengths: Sequence[int], prefixes: Sequence[Prefix | None]
    ) -> None:
        self._cache, self._lengths, self._prefixes = cache, lengths, prefixes
        device = cache.device
        self._length = torch.tensor(lengths, device=device)
        self._slots = torch.arange(len(lengths), device=device)
        self._runs = neighbours([-(-(length + 1) // SPAN) * SPAN for length in lengths])
        self._biases: list[Tensor] = []
        shared = dict.fromkeys(prefix for prefix in prefixes if prefix is not None)
        self._behind = {
            prefix: torch.tensor([row for row, own in enumerate(prefixes) if own is prefix]).to(
                device
            )
            for prefix in shared
        }

    def attend(self, q: Tensor, k: Tensor, v: Tensor, asked: Asked) -> Tensor:
        """See attention.Structure."""
        active = len(self._lengths)
        keys, values = self._cache.layer(asked.layer, k, v)
        keys[self._slots, :, self._length] = k[:, :active].transpose(0, 1)
        values[self._slots, :, self._length] = v[:, :active].transpose(0, 1)
        queries = q[:, :active].transpose(0, 1).unsqueeze(2)
        out = q.new_zeros(q.shape[1], len(q), v.shape[-1])
        if asked.plain:
            out[:active] = self._together(queries, keys, values, asked)
        else:
            for row, prefix in enumerate(self._prefixes):
                part = slice(row, row + 1), slice(None), slice(self._lengths[row] + 1)
                path = _layer(prefix, asked.layer)
                out[row] = _any(queries[part[0]], keys[part], values[part], path, asked)[0]
        return out.transpose(0, 1)

    def _together(self, queries: Tensor, keys: Tensor, values: Tensor, asked: Asked) -> Tensor:
        """All rows at once: queries (rows, H, 1, D) -> (rows, H, D_v)."""
        if not self._biases:
            # The same in every layer.
            group = queries.shape[1] // keys.shape[1]
            for rows, span in self._runs:
                place = torch.arange(span, device=queries.device)
                distance = (self._length[rows, None] - place)[:, None]
                self._biases.append(hide(distance, group, queries.dtype))
        parts = [
            flash(queries[rows], keys[rows, :, :span], values[rows, :, :span], bias, asked.scale)
            for (rows, span), bias in zip(self._runs, self._biases, strict=True)
        ]
        out, lse = (torch.cat(part) for part in zip(*parts, strict=True))
        for prefix, members in self._behind.items():
            path_k, path_v = prefix.layers[asked.layer]
            several = queries[members].transpose(0, 2)
            path, path_lse = flash(several, path_k[None], path_v[None], None, asked.scale)
            out[members], lse[members] = join(
                out[members], lse[members], path.transpose(0, 2), path_lse.transpose(0, 2)
            )
        return out.squeeze(2)


def neighbours(spans: Sequence[int]) -> list[tuple[slice, int]]:
    """Neighbouring rows that are read together, up to the longest one's span.

    A run goes on while what it reads for nothing costs less than a call of its own.
    """
    runs: list[tuple[slice, int]] = []
    for row, span in enumerate(spans):
        if runs:
            rows, longest = runs[-1]
            count, most = row - rows.start, max(span, longest)
            if (count + 1) * most <= count * longest + span + CALL:
                runs[-1] = slice(rows.start, row + 1), most
                continue
        runs.append((slice(row, row + 1), span))
    return runs


def _layer(prefix: Prefix | None, layer: int) -> KeyValues | None:
    return prefix.layers[layer] if prefix is not None else None


def _plain(q: Tensor, k: Tensor, v: Tensor, path: KeyValues | None, asked: Asked) -> Tensor:
    """The last tokens of a row, q (1, H, L, D), behind their own keys and those of its prefix.

    Returns:
        (L, H, D_v).
    """
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out, lse = behind(q, k, v, asked.scale, causal=True)
    if path is not None:
        path_k, path_v = (x.transpose(0, 1)[None] for x in path)
        out, _ = join(out, lse, *behind(q, path_k, path_v, asked.scale))
    return out[0]


def _any(q: Tensor, k: Tensor, v: Tensor, path: KeyValues | None, asked: Asked) -> Tensor:
    """As `_plain`, written out: windows, soft caps, sinks."""
    if path is not None:
        k, v = torch.cat([path[0][None], k], 2), torch.cat([path[1][None], v], 2)
    _, heads, length, _ = q.shape
    kv_heads, total = k.shape[1:3]
    grouped = q.reshape(1, kv_heads, heads // kv_heads, length, -1)
    scores = torch.einsum("nkgld,nksd->nkgls", grouped, k) * asked.scale
    if asked.softcap is not None:
        scores = asked.softcap * torch.tanh(scores / asked.softcap)
    place = torch.arange(total, device=q.device)
    distance = place[total - length :, None] - place[None, :]
    seen = distance >= 0
    if asked.window is not None:
        seen &= distance < asked.window
    scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
    if asked.sinks is not None:
        sinks = asked.sinks.reshape(1, kv_heads, -1, 1, 1).to(scores.dtype)
        scores = torch.cat([scores, sinks.expand(1, -1, -1, length, -1)], -1)
    probs = torch.softmax(exact(scores), -1).to(q.dtype)[..., :total]
    return torch.einsum("nkgls,nksd->nlkgd", probs, v).reshape(length, heads, -1)
