"""Attention over forests by FlexAttention (Dong et al. 2024, arXiv:2412.05496), for CUDA.

One kernel takes a layer's whole packed batch. A block mask, made from the intervals once for each
batch and window, lists the blocks of 128 x 128 that have anything to see; the kernel skips the
others. Nothing imports this module where there is no CUDA.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import (
    AuxRequest,
    BlockMask,
    FlexKernelOptions,
    flex_attention,
)

from tunesmith.models.attention import Asked

Kernel = Callable[..., Any]
"""`flex_attention`, or what it was compiled to."""

BLOCK = 128
"""Queries and keys of a block: what FlexAttention itself takes."""
LEAST_WIDTH = 16
"""Narrowest heads that its matrix products take."""
OPTIONS: FlexKernelOptions = {"BACKEND": "TRITON"}
"""Never the decoding kernel, which short batches would get: one kernel serves every length."""


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, asked: Asked, kernel: Kernel
) -> Tensor:
    """Attention of each token to what its forest's mask shows it.

    A batch is not padded to whole blocks: a kernel for every length checks its bounds either way.

    Args:
        q, k, v: (H, T, D), (H_kv, T, D) and (H_kv, T, D_v); H is a multiple of H_kv.
        mask: what `block_mask` made for the window that is asked for.
        asked: what the layer asks for.
        kernel: what computes it.

    Returns:
        (H, T, D_v).
    """
    sinks = asked.sinks
    out = kernel(
        q[None],
        k[None],
        v[None],
        score_mod=None if asked.softcap is None else _softcap(q, asked.softcap),
        block_mask=mask,
        scale=asked.scale,
        enable_gqa=True,
        kernel_options=OPTIONS,
        return_aux=None if sinks is None else AuxRequest(lse=True),
    )
    if sinks is None:
        return out[0]
    # A sink is one more score without a value: the rest keeps exp(lse) / (exp(lse) + exp(sink)).
    share = torch.sigmoid(out[1].lse[0] - sinks[:, None])
    return (out[0][0] * share[..., None]).to(v.dtype)


def _softcap(q: Tensor, cap: float) -> Callable[..., Tensor]:
    # A tensor of the device, one value a head: a plain number would reach a kernel that is
    # compiled for all shapes as a tensor of the CPU, which a GPU cannot read.
    exact = torch.promote_types(q.dtype, torch.float32)
    caps = torch.full((len(q),), cap, dtype=exact, device=q.device)

    def score_mod(score: Tensor, _batch: Tensor, head: Tensor, _q: Tensor, _kv: Tensor) -> Tensor:
        return caps[head] * torch.tanh(score / caps[head])

    return score_mod


def block_mask(ends: Tensor, depth: Tensor, window: int | None) -> BlockMask:
    """The mask of a forest, without ever holding T x T of anything.

    Args:
        ends: (T,) end of each token's subtree, `exit` of the batch.
        depth: (T,) tokens before each on its path.
        window: of a sliding-window layer.
    """
    size = len(ends)
    ends, depth = ends.int(), depth.int()
    some, every = _blocks(ends, depth, window)
    return BlockMask.from_kv_blocks(
        *_listed(some & ~every),
        *_listed(every),
        BLOCK_SIZE=BLOCK,
        mask_mod=_mask_mod(ends, depth, window),
        seq_lengths=(size, size),
    )


def _mask_mod(ends: Tensor, depth: Tensor, window: int | None) -> Callable[..., Tensor]:
    def on_path(_batch: Tensor, _head: Tensor, q: Tensor, kv: Tensor) -> Tensor:
        return (kv <= q) & (q < ends[kv])

    if window is None:
        return on_path
    # The window is in a tensor and not a number, so that one kernel serves every window.
    reach = depth + window

    def near(_batch: Tensor, _head: Tensor, q: Tensor, kv: Tensor) -> Tensor:
        return (kv <= q) & (q < ends[kv]) & (depth[q] < reach[kv])

    return near


def _blocks(ends: Tensor, depth: Tensor, window: int | None) -> tuple[Tensor, Tensor]:
    """Which blocks hold a visible pair, and which hold no other; (n, n) each, queries first.

    `create_block_mask` finds the same from all T x T pairs.
    """
    n = -(-len(ends) // BLOCK)
    missing = n * BLOCK - len(ends)
    # Tokens that fill the last block see nothing and are seen by nothing.
    ends = torch.nn.functional.pad(ends, (0, missing))
    depth = torch.nn.functional.pad(depth, (0, missing))
    starts = torch.arange(0, n * BLOCK, BLOCK, device=ends.device)[:, None]
    # Of a block of queries behind a key, the key is visible to the first `until`: (n, n * BLOCK).
    until = (ends - starts).clamp(0, BLOCK)
    seen, filled = until > 0, until == BLOCK
    if window is not None:
        distant = depth.view(n, BLOCK)
        nearest = distant.cummin(1).values.gather(1, (until - 1).clamp(min=0).long())
        seen &= nearest - depth < window
        filled &= distant.amax(1, keepdim=True) - depth < window
    behind = torch.ones(n, n, dtype=torch.bool, device=ends.device).tril(-1)
    some = seen.view(n, n, BLOCK).any(2) & behind
    every = filled.view(n, n, BLOCK).all(2) & behind
    # Each token sees itself, and none behind it: the diagonal is never empty and never full.
    return some.fill_diagonal_(fill_value=True), every


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks each row of (n, n) has: (1, 1, n), and which, these first: (1, 1, n, n)."""
    flags = blocks.int()
    order = flags.argsort(dim=1, descending=True, stable=True)
    return flags.sum(1).int()[None, None], order.int()[None, None]


class Kind(NamedTuple):
    """What a kernel is compiled for; it serves every forest, window and soft cap."""

    device: torch.device
    dtype: torch.dtype
    heads: int
    kv_heads: int
    width: int
    value_width: int
    scale: float
    windowed: bool
    capped: bool
    sunk: bool
    trained: bool

    @classmethod
    def of(cls, q: Tensor, k: Tensor, v: Tensor, asked: Asked) -> Kind:
        """From a layer's tensors (H, T, D), (H_kv, T, D), (H_kv, T, D_v) and its wishes."""
        return cls(
            device=q.device,
            dtype=q.dtype,
            heads=len(q),
            kv_heads=len(k),
            width=q.shape[-1],
            value_width=v.shape[-1],
            scale=asked.scale,
            windowed=asked.window is not None,
            capped=asked.softcap is not None,
            sunk=asked.sinks is not None,
            trained=torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)),
        )


@cache
def kernel(kind: Kind) -> Kernel | None:
    """The compiled kernel, or None where this machine has none for it.

    That is told by a trial, forward and backward: whether a compiler is there and whether a head
    of this width fits in the shared memory depends on the machine, and not on a list.
    """
    narrow = min(kind.width, kind.value_width) < LEAST_WIDTH
    if narrow or kind.dtype == torch.float64:
        return None
    compiled = compile_kernel()
    try:
        # Grad mode and the hooks of activation checkpointing belong to a thread: in one of its
        # own, the trial leaves nothing behind in the layer that came first.
        with ThreadPoolExecutor(1) as alone:
            alone.submit(_try, compiled, kind).result()
    except RuntimeError as error:
        warnings.warn(
            f"FlexAttention does not run here, plain attention is used: {str(error)[:300]}",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    return compiled


def compile_kernel(backend: str = "inductor") -> Kernel:
    """FlexAttention compiled for all lengths, with a count of recompilations of its own.

    Past the limit it raises: without a compiled kernel, FlexAttention would hold all T x T scores.
    """
    # The overloads that torch declares leave out the last two.
    return torch.compile(  # pyright: ignore[reportCallIssue]
        flex_attention,
        backend=backend,
        dynamic=True,
        fullgraph=True,
        isolate_recompiles=True,
        recompile_limit=32,
    )


TRIAL = 11 * BLOCK - 5
"""Tokens of a trial. Dimensions of equal size are first compiled as one: few models have as many
heads as this has blocks, so that what is compiled for the trial serves other lengths too."""


def _try(compiled: Kernel, kind: Kind) -> None:
    """Run a kernel on a chain."""

    def zeros(heads: int, width: int) -> Tensor:
        # Tokens first in memory, as a model's projections lie.
        return torch.zeros(
            TRIAL, heads, width, dtype=kind.dtype, device=kind.device, requires_grad=kind.trained
        ).transpose(0, 1)

    depth = torch.arange(TRIAL, device=kind.device)
    asked = Asked(
        layer=0,
        scale=kind.scale,
        window=BLOCK if kind.windowed else None,
        softcap=1.0 if kind.capped else None,
        sinks=torch.zeros(kind.heads, device=kind.device) if kind.sunk else None,
    )
    mask = block_mask(torch.full_like(depth, TRIAL), depth, asked.window)
    q, k = (zeros(heads, kind.width) for heads in (kind.heads, kind.kv_heads))
    with torch.set_grad_enabled(kind.trained):
        out = attend(q, k, zeros(kind.kv_heads, kind.value_width), mask, asked, compiled)
        if kind.trained:
            out.sum().backward()
