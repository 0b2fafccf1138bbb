"""Attention over forests, registered with transformers as the implementation "forest".

A frozen model runs it unchanged: the batch's structure travels as the keyword `tree` through the
model's forward (never a global, so that recomputation sees it). Segments of one parent and of
similar length are computed together: their queries see the path above them and, causally, their
own run. No T x T mask is ever made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import AttentionInterface

from tunesmith.errors import ModelError
from tunesmith.models.kernels import causal, exact, fused, join, softmax_backward
from tunesmith.models.tree import PackedBatch, segments

NAME = "forest"


@dataclass(frozen=True, slots=True)
class Asked:
    """What a layer asks of its attention."""

    layer: int
    scale: float
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None

    @property
    def plain(self) -> bool:
        """Nothing but scaled dot products."""
        return self.window is None and self.softcap is None and self.sinks is None


class Structure(Protocol):
    """How the tokens of a forward pass see each other."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, asked: Asked) -> Tensor:
        """q (H, T, D), k (H_kv, T, D), v (H_kv, T, D_v) -> (H, T, D_v)."""
        ...


def forest_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    tree: Structure | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The function that transformers calls in each layer; shapes (1, H, T, D)."""
    if tree is None:
        raise ModelError(
            "the model dropped the batch's structure before attention",
            expected="a model of transformers that hands keyword arguments to its attention",
        )
    if dropout:
        raise ModelError(
            f"the model asks for attention dropout {dropout}", expected="attention_dropout 0"
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    asked = Asked(int(getattr(module, "layer_idx", 0)), scale, sliding_window, softcap, s_aux)
    out = tree.attend(query[0], key[0], value[0], asked)
    return out.transpose(0, 1).unsqueeze(0).contiguous(), None


AttentionInterface.register(NAME, forest_attention)


@dataclass(frozen=True, slots=True)
class _Group:
    """Segments below one path, padded to one length.

    own: (n, L) token indices, padded by repeating the last. path: (P,) indices of the tokens
    above. place: positions in the flattened (n * L) that hold real tokens; tokens: theirs.
    """

    own: Tensor
    path: Tensor
    place: Tensor
    tokens: Tensor


class Forest:
    """The structure of one packed batch on one device."""

    def __init__(self, batch: PackedBatch, device: torch.device | str = "cpu") -> None:
        self.depth = torch.from_numpy(batch.depth).to(device)
        self.groups = [_on(group, device) for group in _plan(batch)]
        self._deepest = int(batch.depth.max(initial=0))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, asked: Asked) -> Tensor:
        """Attention of each token to its path; see Structure."""
        if asked.window is not None and self._deepest < asked.window:
            asked = Asked(asked.layer, asked.scale, None, asked.softcap, asked.sinks)
        if asked.plain and q.device.type == "cpu" and q.shape[-1] == v.shape[-1]:
            out: Tensor = _FlashForest.apply(q, k, v, self.groups, asked.scale)  # pyright: ignore[reportAssignmentType]
            return out
        parts = [
            _math_group(q, k, v, group, self.depth, asked).index_select(1, group.place)
            for group in self.groups
        ]
        order = torch.argsort(torch.cat([group.tokens for group in self.groups]))
        return torch.cat(parts, 1).index_select(1, order)


def _plan(batch: PackedBatch) -> list[_Group]:
    runs = segments(batch)
    by_parent: dict[int, list[int]] = {}
    for index, run in enumerate(runs):
        by_parent.setdefault(run.parent, []).append(index)
    groups: list[_Group] = []
    for parent, children in by_parent.items():
        path: list[np.ndarray[Any, Any]] = []
        above = parent
        while above >= 0:
            path.insert(0, np.arange(runs[above].start, runs[above].end))
            above = runs[above].parent
        joined = np.concatenate(path) if path else np.zeros(0, dtype=np.int64)
        children.sort(key=lambda index: runs[index].length)
        for bucket in _buckets([runs[index].length for index in children]):
            members = [runs[index] for index in children[bucket]]
            length = max(run.length for run in members)
            own = np.stack(
                [
                    np.minimum(np.arange(run.start, run.start + length), run.end - 1)
                    for run in members
                ]
            )
            real = np.concatenate(
                [row * length + np.arange(run.length) for row, run in enumerate(members)]
            )
            groups.append(
                _Group(
                    torch.from_numpy(own),
                    torch.from_numpy(joined),
                    torch.from_numpy(real),
                    torch.from_numpy(own.reshape(-1)[real]),
                )
            )
    return groups


def _buckets(lengths: Sequence[int]) -> list[slice]:
    """Slices of ascending lengths in which padding stays under a third (or 16 tokens)."""
    slices: list[slice] = []
    start = 0
    for end in range(1, len(lengths) + 1):
        if end == len(lengths) or lengths[end] > max(lengths[start] * 1.5, lengths[start] + 16):
            slices.append(slice(start, end))
            start = end
    return slices


def _on(group: _Group, device: torch.device | str) -> _Group:
    return _Group(
        group.own.to(device), group.path.to(device), group.place.to(device), group.tokens.to(device)
    )


def _gather(x: Tensor, group: _Group) -> Tensor:
    """(H, T, D) -> (n, H, L, D), the group's own tokens."""
    n, length = group.own.shape
    return x.index_select(1, group.own.reshape(-1)).view(x.shape[0], n, length, -1).transpose(0, 1)


def _stack_heads(x: Tensor, kv_heads: int) -> Tensor:
    """(n, H, L, D) -> (1, H_kv, G * n * L, D): query heads of one key head, one below the other."""
    n, heads, length, width = x.shape
    grouped = x.transpose(0, 1).reshape(kv_heads, heads // kv_heads * n * length, width)
    return grouped.unsqueeze(0)


def _unstack_heads(x: Tensor, n: int, heads: int, length: int) -> Tensor:
    return x.reshape(heads, n, length, *x.shape[3:]).transpose(0, 1)


def _beside(x: Tensor, kv_heads: int) -> Tensor:
    """(n, H, L, D) -> (n * H_kv, L * G, D): query heads of one key head, position by position."""
    n, heads, length, width = x.shape
    grouped = x.reshape(n, kv_heads, heads // kv_heads, length, width).transpose(2, 3)
    return grouped.reshape(n * kv_heads, -1, width)


class _FlashForest(torch.autograd.Function):
    """All groups with the CPU's fused kernel: path and own run apart, joined by their log-sum-exp.

    Padding stands behind a run's tokens, so the causal order alone keeps it out of sight. The
    backward pass rebuilds probabilities from the joined log-sum-exp, so that path and own run each
    give their share of the exact gradient (Dao et al. 2022, arXiv:2205.14135, B.2).
    """

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, groups: list[_Group], scale: float
    ) -> Tensor:
        """(H, T, D) each -> (H, T, D)."""
        out = torch.empty_like(q)
        lse = q.new_empty(q.shape[:2], dtype=q.dtype if q.dtype == torch.float64 else torch.float32)
        for group in groups:
            part, part_lse = _group_forward(q, k, v, group, scale)
            flat = part.transpose(0, 1).reshape(len(q), -1, q.shape[-1])
            out.index_copy_(1, group.tokens, flat.index_select(1, group.place))
            flat_lse = part_lse.transpose(0, 1).reshape(len(q), -1).to(lse.dtype)
            lse.index_copy_(1, group.tokens, flat_lse.index_select(1, group.place))
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.groups, ctx.scale = groups, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        """Gradients of q, k, v."""
        q, k, v, out, lse = ctx.saved_tensors
        totals = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for group in ctx.groups:
            parts = _group_backward(grads[0], q, k, v, out, lse, group, ctx.scale, totals)
            for whole, part in zip(totals, parts, strict=True):
                flat = part.transpose(0, 1).reshape(len(whole), -1, whole.shape[-1])
                whole.index_add_(1, group.tokens, flat.index_select(1, group.place))
        return (*totals, None, None)


def _group_forward(
    q: Tensor, k: Tensor, v: Tensor, group: _Group, scale: float
) -> tuple[Tensor, Tensor]:
    """Output (n, H, L, D) and log-sum-exp (n, H, L) of one group."""
    heads, kv_heads = len(q), len(k)
    own_q, own_k, own_v = (_gather(x, group) for x in (q, k, v))
    out, lse = causal(own_q, own_k, own_v, scale)
    if not len(group.path):
        return out, lse
    n, length = group.own.shape
    path_k, path_v = (x.index_select(1, group.path).unsqueeze(0) for x in (k, v))
    path_q = _stack_heads(own_q, kv_heads)
    path_out, path_lse = fused(path_q, path_k, path_v, 0.0, False, attn_mask=None, scale=scale)
    path_out = _unstack_heads(path_out, n, heads, length)
    path_lse = _unstack_heads(path_lse, n, heads, length)
    return join(out, lse, path_out, path_lse)


def _group_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    group: _Group,
    scale: float,
    totals: tuple[Tensor, Tensor, Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the group's own tokens; those of its path are added to `totals`."""
    n, length = group.own.shape
    heads, kv_heads, width = len(q), len(k), q.shape[-1]
    own_q, own_k, own_v, own_out, own_grad = (_gather(x, group) for x in (q, k, v, out, grad))
    own_lse = _gather(lse.unsqueeze(-1), group)
    if len(group.place) < n * length:
        # A padded place is a copy of the last token: without a gradient it adds nothing.
        real = own_grad.new_zeros(n * length).index_fill_(0, group.place, 1.0)
        own_grad = own_grad * real.view(n, 1, length, 1)
    delta = (own_grad.to(lse.dtype) * own_out).sum(-1, keepdim=True)
    rows = (own_q, own_grad, own_lse, delta)
    beside = [_beside(x, kv_heads) for x in rows]
    keys = [x.reshape(n * kv_heads, length, -1) for x in (own_k, own_v)]
    several = heads // kv_heads
    grad_q, grad_k, grad_v = softmax_backward(*beside, *keys, scale=scale, causal=several)
    grad_q = grad_q.view(n, kv_heads, length, several, width).transpose(2, 3)
    grad_q = grad_q.reshape(n, heads, length, width)
    grad_k, grad_v = (x.view(n, kv_heads, length, -1) for x in (grad_k, grad_v))
    if len(group.path):
        path = [x.index_select(1, group.path) for x in (k, v)]
        stacked = [_stack_heads(x, kv_heads)[0] for x in rows]
        more_q, more_k, more_v = softmax_backward(*stacked, *path, scale=scale, causal=0)
        grad_q = grad_q + _unstack_heads(more_q[None], n, heads, length)
        totals[1].index_add_(1, group.path, more_k)
        totals[2].index_add_(1, group.path, more_v)
    return grad_q, grad_k, grad_v


def _math_group(
    q: Tensor, k: Tensor, v: Tensor, group: _Group, depth: Tensor, asked: Asked
) -> Tensor:
    """One group in plain operations: any device, sliding windows, soft caps and sinks."""
    n, length = group.own.shape
    heads, kv_heads = q.shape[0], k.shape[0]
    own_q = _gather(q, group).reshape(n, kv_heads, heads // kv_heads, length, -1)
    own_k, own_v = _gather(k, group), _gather(v, group)
    path_k, path_v = k.index_select(1, group.path), v.index_select(1, group.path)
    scores = torch.cat(
        [
            torch.einsum("nkgld,kpd->nkglp", own_q, path_k),
            torch.einsum("nkgld,nkmd->nkglm", own_q, own_k),
        ],
        -1,
    )
    scores = scores * asked.scale
    if asked.softcap is not None:
        scores = asked.softcap * torch.tanh(scores / asked.softcap)
    own_depth = depth[group.own]
    key_depth = torch.cat([depth[group.path].expand(n, -1), own_depth], 1)
    distance = own_depth[:, :, None] - key_depth[:, None, :]
    seen = distance >= 0
    # A padded place repeats the last token, whose depth would let it see itself twice.
    padded = torch.arange(length, device=q.device) - (own_depth - own_depth[:, :1])
    seen[:, :, len(group.path) :] &= (padded == 0)[:, None, :]
    if asked.window is not None:
        seen &= distance < asked.window
    scores = scores.masked_fill(~seen[:, None, None], torch.finfo(scores.dtype).min)
    if asked.sinks is not None:
        sinks = asked.sinks.reshape(1, kv_heads, heads // kv_heads, 1, 1).to(scores.dtype)
        scores = torch.cat([scores, sinks.expand(n, -1, -1, length, -1)], -1)
    probs = torch.softmax(exact(scores), -1).to(v.dtype)
    split = len(group.path)
    out = torch.einsum("nkglp,kpd->nkgld", probs[..., :split], path_v)
    out = out + torch.einsum("nkglm,nkmd->nkgld", probs[..., split : split + length], own_v)
    return out.permute(1, 2, 0, 3, 4).reshape(heads, n * length, -1)
