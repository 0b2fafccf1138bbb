"""Attention over forests, registered with transformers as the implementation "forest".

A frozen model runs it unchanged: the batch's structure travels as the keyword `tree` through the
model's forward (never a global, so that recomputation sees it). A segment's queries see, causally,
their own run and all of the path above them. No T x T mask is ever made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import AttentionInterface

from tunesmith.errors import ModelError
from tunesmith.models.kernels import SoftmaxPair, behind, exact, join, softmax_backward
from tunesmith.models.tree import PackedBatch, Segment, segments

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

    from tunesmith.models.flex import Kernel

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
    if attention_mask is not None:
        raise ModelError(
            "the model makes an attention mask of its own",
            expected="a model that leaves to its attention which tokens see each other",
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
        self._batch, self._device = batch, device
        self._deepest = int(batch.depth.max(initial=0))
        self._masks: dict[int | None, BlockMask] = {}

    @cached_property
    def _plan(self) -> _Plan:
        return _plan(self._batch)

    @cached_property
    def _groups(self) -> list[_Group]:
        return [_on(group, self._device) for group in _group(self._batch)]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, asked: Asked) -> Tensor:
        """Attention of each token to its path; see Structure."""
        if asked.window is not None and self._deepest < asked.window:
            asked = Asked(asked.layer, asked.scale, None, asked.softcap, asked.sinks)
        if asked.plain and q.device.type == "cpu" and q.shape[-1] == v.shape[-1]:
            out: Tensor = _FlashForest.apply(q, k, v, self._plan, asked.scale)  # pyright: ignore[reportAssignmentType]
            return out
        kernel = _flex_kernel(q, k, v, asked)
        if kernel is not None:
            from tunesmith.models.flex import attend

            return attend(q, k, v, self.block_mask(asked.window), asked, kernel)
        parts = [
            _math_group(q, k, v, group, self.depth, asked).index_select(1, group.place)
            for group in self._groups
        ]
        order = torch.argsort(torch.cat([group.tokens for group in self._groups]))
        return torch.cat(parts, 1).index_select(1, order)

    def block_mask(self, window: int | None) -> BlockMask:
        """What FlexAttention reads: made for the first layer with this window, for all of them."""
        if window not in self._masks:
            from tunesmith.models.flex import block_mask

            ends = torch.from_numpy(self._batch.exit).to(self._device)
            self._masks[window] = block_mask(ends, self.depth, window)
        return self._masks[window]


def _flex_kernel(q: Tensor, k: Tensor, v: Tensor, asked: Asked) -> Kernel | None:
    """FlexAttention where it serves this: on CUDA, which alone imports it."""
    if q.device.type != "cuda":
        return None
    from tunesmith.models.flex import Kind, kernel

    return kernel(Kind.of(q, k, v, asked))


def _group(batch: PackedBatch) -> list[_Group]:
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
        for bucket in buckets([runs[index].length for index in children]):
            own, real = padded([runs[index] for index in children[bucket]])
            groups.append(_Group(own, torch.from_numpy(joined), real, own.reshape(-1)[real]))
    return groups


def padded(members: Sequence[Segment]) -> tuple[Tensor, Tensor]:
    """Token indices (n, L) of some runs, the last repeated, and the places of n * L that are none."""
    # In sixteens: a product is compiled anew for every size.
    length = -(-max(run.length for run in members) // 16) * 16
    own = np.stack(
        [np.minimum(np.arange(run.start, run.start + length), run.end - 1) for run in members]
    )
    real = np.concatenate([row * length + np.arange(run.length) for row, run in enumerate(members)])
    return torch.from_numpy(own), torch.from_numpy(real)


CALL = 40_000
"""Scores of a head that could be computed in the time that one more call takes."""


def buckets(lengths: Sequence[int]) -> list[slice]:
    """Slices of ascending lengths, each to be padded to its longest.

    One goes on while the scores that padding adds cost less than a call of its own.
    """
    slices: list[slice] = []
    for place, length in enumerate(lengths):
        if slices:
            start = slices[-1].start
            count, before = place - start, lengths[place - 1]
            if count * (length**2 - before**2) <= CALL:
                slices[-1] = slice(start, place + 1)
                continue
        slices.append(slice(place, place + 1))
    return slices


def _on(group: _Group, device: torch.device | str) -> _Group:
    return _Group(
        group.own.to(device), group.path.to(device), group.place.to(device), group.tokens.to(device)
    )


def _gather(x: Tensor, group: _Group) -> Tensor:
    """(H, T, D) -> (n, H, L, D), the group's own tokens."""
    n, length = group.own.shape
    return x.index_select(1, group.own.reshape(-1)).view(x.shape[0], n, length, -1).transpose(0, 1)


@dataclass(frozen=True, slots=True)
class _Runs:
    """Runs of tokens that are computed together: one by itself, or short ones padded to one length.

    own: (n, L) token indices, or a run's interval. place: positions in the flattened (n * L) that
    hold real tokens; padding: the others. Both empty for an interval.
    """

    own: slice | Tensor
    place: Tensor
    padding: Tensor

    def take(self, x: Tensor) -> Tensor:
        """(T, ...) -> (n, L, ...)."""
        if isinstance(self.own, slice):
            return x[self.own][None]
        return x.index_select(0, self.own.reshape(-1)).view(*self.own.shape, *x.shape[1:])

    def put(self, x: Tensor, part: Tensor) -> None:
        """The inverse: each token's part of (n, L, ...) into (T, ...)."""
        if isinstance(self.own, slice):
            x[self.own] = part[0]
            return
        tokens = self.own.reshape(-1)[self.place]
        x.index_copy_(0, tokens, part.flatten(0, 1).index_select(0, self.place))


@dataclass(frozen=True, slots=True)
class _Plan:
    """What a forest's attention is made of: runs by themselves, and tokens behind shared runs."""

    own: list[_Runs]
    shared: list[tuple[slice, slice]]
    """(keys of a run, the tokens below it): both are intervals, as the order is preorder."""


LONG = 128
"""Runs of this many tokens are computed by themselves; shorter ones side by side."""


def _plan(batch: PackedBatch) -> _Plan:
    runs = segments(batch)
    shared = [
        (slice(run.start, run.end), slice(run.end, int(batch.exit[run.end - 1])))
        for run in runs
        if batch.exit[run.end - 1] > run.end
    ]
    none = torch.empty(0, dtype=torch.long)
    own = [_Runs(slice(run.start, run.end), none, none) for run in runs if run.length >= LONG]
    short = sorted((run for run in runs if run.length < LONG), key=lambda run: run.length)
    for bucket in buckets([run.length for run in short]):
        index, place = padded(short[bucket])
        filler = torch.ones(index.numel(), dtype=torch.bool).index_fill_(0, place, value=False)
        own.append(_Runs(index, place, torch.nonzero(filler).squeeze(1)))
    return _Plan(own, shared)


class _FlashForest(torch.autograd.Function):
    """A whole forest with the CPU's fused kernel: own runs and shared ones, joined by log-sum-exp.

    Padding stands behind a run's tokens, so the causal order alone keeps it out of sight. The
    backward pass rebuilds probabilities from the joined log-sum-exp, so that each part gives its
    share of the exact gradient (Dao et al. 2022, arXiv:2205.14135, B.2).

    Inside, tokens come first: (T, H, D) is how a model's projections lie in memory.
    """

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, plan: _Plan, scale: float
    ) -> Tensor:
        """(H, T, D) each -> (H, T, D)."""
        q, k, v = (x.transpose(0, 1) for x in (q, k, v))
        out = q.new_empty(q.shape)
        lse = q.new_empty(q.shape[:2], dtype=q.dtype if q.dtype == torch.float64 else torch.float32)
        for runs in plan.own:
            part, part_lse = behind(runs.take(q), runs.take(k), runs.take(v), scale, causal=True)
            runs.put(out, part)
            runs.put(lse, part_lse)
        for keys, below in plan.shared:
            part, part_lse = behind(q[None, below], k[None, keys], v[None, keys], scale)
            out[below], lse[below] = join(out[below], lse[below], part[0], part_lse[0])
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.plan, ctx.scale = plan, scale
        return out.transpose(0, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        """Gradients of q, k, v."""
        q, k, v, out, lse = ctx.saved_tensors
        pair = SoftmaxPair.of(q, k, v, out, lse, grads[0].transpose(0, 1), ctx.scale)
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        for runs in ctx.plan.own:
            some = SoftmaxPair(*(runs.take(x) for x in pair))
            # A padded place is a copy of the last token: without a gradient it adds nothing.
            some.grad.flatten(0, 1).index_fill_(0, runs.padding, 0.0)
            parts = softmax_backward(some, causal=True)
            for whole, part in zip((grad_q, grad_k, grad_v), parts, strict=True):
                runs.put(whole, part)
        for keys, below in ctx.plan.shared:
            some = SoftmaxPair(
                pair.q[None, below], pair.k[None, keys], pair.v[None, keys], pair.grad[None, below]
            )
            more_q, more_k, more_v = softmax_backward(some, causal=False)
            grad_q[below] += more_q[0]
            grad_k[keys] += more_k[0]
            grad_v[keys] += more_v[0]
        grad_q.mul_(ctx.scale)
        return grad_q.transpose(0, 1), grad_k.transpose(0, 1), grad_v.transpose(0, 1), None, None


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
    beyond = torch.arange(length, device=q.device) - (own_depth - own_depth[:, :1])
    seen[:, :, len(group.path) :] &= (beyond == 0)[:, None, :]
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
