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
from tunesmith.models.cache import Prefix, RowCache
from tunesmith.models.kernels import exact, flash, join


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
        out = q.new_zeros(len(q), q.shape[1], v.shape[-1])
        start = 0
        for span in self._spans:
            part = slice(start, start + len(span.ids))
            self._keep(span, asked.layer, k[:, part], v[:, part])
            keys, values = k[None, :, part], v[None, :, part]
            own = torch.arange(len(span.ids), device=q.device)
            distance = (own[:, None] - own[None, :])[None]
            pieces = [(keys, values, distance)]
            if span.prefix is not None:
                path_k, path_v = span.prefix.layers[asked.layer]
                path = torch.arange(span.above, device=q.device)
                far = (own[:, None] + span.above - path[None, :])[None]
                pieces.append((path_k[None], path_v[None], far))
            out[:, part] = _attend(q[None, :, part], pieces, asked)[0]
            start = part.stop
        return out

    def _keep(self, span: RowSpan, layer: int, k: Tensor, v: Tensor) -> None:
        if span.into is not None:
            span.into.layers[layer] = k.clone(), v.clone()
        if span.slot is not None:
            keys, values = self._cache.layer(layer, k, v)
            keys[span.slot, :, : len(span.ids)] = k
            values[span.slot, :, : len(span.ids)] = v


class Decode:
    """One token for each active row; the rest is padding."""

    def __init__(
        self, cache: RowCache, lengths: Sequence[int], prefixes: Sequence[Prefix | None]
    ) -> None:
        self._cache = cache
        self._active = len(lengths)
        device = cache.device
        self._length = torch.tensor(lengths, device=device)
        # Bounded by the longest row of the batch, in blocks: few shapes, little waste.
        self._span = min(cache.capacity, -(-(max(lengths) + 1) // 64) * 64)
        own = torch.arange(self._span, device=device)
        self._distance = (self._length[:, None] - own[None, :])[:, None, :]
        by_prefix: dict[int, tuple[Prefix, list[int]]] = {}
        for row, prefix in enumerate(prefixes):
            if prefix is not None:
                by_prefix.setdefault(id(prefix), (prefix, []))[1].append(row)
        self._prefixes = [
            (prefix, torch.tensor(rows, device=device)) for prefix, rows in by_prefix.values()
        ]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, asked: Asked) -> Tensor:
        """See attention.Structure."""
        active = self._active
        keys, values = self._cache.layer(asked.layer, k, v)
        rows = torch.arange(active, device=q.device)
        keys[rows, :, self._length] = k[:, :active].transpose(0, 1)
        values[rows, :, self._length] = v[:, :active].transpose(0, 1)
        queries = q[:, :active].transpose(0, 1).unsqueeze(2)
        span = self._span
        own = (keys[:active, :, :span], values[:active, :, :span], self._distance)
        out = q.new_zeros(q.shape[1], len(q), v.shape[-1])
        if not asked.plain:
            self._one_by_one(queries, own, asked, out)
            return out.transpose(0, 1)
        part, lse = flash(queries, *own, asked.scale)
        for prefix, members in self._prefixes:
            path_k, path_v = prefix.layers[asked.layer]
            several = queries[members].transpose(0, 2)
            path, path_lse = flash(several, path_k[None], path_v[None], None, asked.scale)
            part[members], lse[members] = join(
                part[members], lse[members], path.transpose(0, 2), path_lse.transpose(0, 2)
            )
        out[:active] = part.squeeze(2)
        return out.transpose(0, 1)

    def _one_by_one(
        self, queries: Tensor, own: tuple[Tensor, Tensor, Tensor], asked: Asked, out: Tensor
    ) -> None:
        prefix_of = {
            int(row): prefix for prefix, members in self._prefixes for row in members.tolist()
        }
        keys, values, distance = own
        for row in range(self._active):
            part = slice(row, row + 1)
            pieces = [(keys[part], values[part], distance[part])]
            if row in prefix_of:
                prefix = prefix_of[row]
                path_k, path_v = prefix.layers[asked.layer]
                path = torch.arange(prefix.length, device=out.device)
                far = (int(self._length[row]) + prefix.length - path)[None, None]
                pieces.append((path_k[None], path_v[None], far))
            out[row] = _attend(queries[part], pieces, asked)[0, :, 0]


Piece = tuple[Tensor, Tensor, Tensor]
"""Keys and values (n, H_kv, S, D) and the distance (n, L, S) from each query back to each key."""


def _attend(q: Tensor, pieces: Sequence[Piece], asked: Asked) -> Tensor:
    """Softmax attention of q (n, H, L, D) over several pieces of keys -> (n, H, L, D_v)."""
    if asked.plain:
        out, lse = flash(q, *pieces[0], asked.scale)
        for piece in pieces[1:]:
            out, lse = join(out, lse, *flash(q, *piece, asked.scale))
        return out
    n, heads, length, _ = q.shape
    kv_heads = pieces[0][0].shape[1]
    grouped = q.reshape(n, kv_heads, heads // kv_heads, length, -1)
    scores = torch.cat(
        [torch.einsum("nkgld,nksd->nkgls", grouped, keys) for keys, _, _ in pieces], -1
    )
    scores = scores * asked.scale
    if asked.softcap is not None:
        scores = asked.softcap * torch.tanh(scores / asked.softcap)
    distance = torch.cat([piece[2].expand(n, -1, -1) for piece in pieces], -1)
    seen = distance >= 0
    if asked.window is not None:
        seen &= distance < asked.window
    scores = scores.masked_fill(~seen[:, None, None], torch.finfo(scores.dtype).min)
    if asked.sinks is not None:
        sinks = asked.sinks.reshape(1, kv_heads, -1, 1, 1).to(scores.dtype)
        scores = torch.cat([scores, sinks.expand(n, -1, -1, length, -1)], -1)
    total = sum(piece[0].shape[2] for piece in pieces)
    probs = torch.softmax(exact(scores), -1).to(q.dtype)[..., :total]
    values = torch.cat([piece[1] for piece in pieces], 2)
    return torch.einsum("nkgls,nksd->nkgld", probs, values).reshape(n, heads, length, -1)
