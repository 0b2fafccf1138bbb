"""Softmax attention and its gradient over plain tensors: no structure, no model."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
"""The CPU's kernel behind scaled_dot_product_attention: it gives the log-sum-exp too."""


def exact(scores: Tensor) -> Tensor:
    """Scores or logits in the precision that a softmax needs."""
    return scores if scores.dtype == torch.float64 else scores.float()


def hide(distance: Tensor, group: int, dtype: torch.dtype) -> Tensor:
    """What `flash` adds to scores where distance (n, L, S) < 0: (n, 1, group * L, S)."""
    n, length, keys = distance.shape
    bias = torch.zeros(n, 1, length, keys, dtype=dtype, device=distance.device)
    bias.masked_fill_((distance < 0)[:, None], float("-inf"))
    return bias.repeat(1, 1, group, 1)


def flash(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention of q (n, H, L, D) over k, v (n, H_kv, S, D), with the bias of `hide`.

    Returns:
        Output (n, H, L, D_v) and log-sum-exp (n, H, L) in float32 (float64 for float64).
    """
    n, heads, length, _ = q.shape
    kv_heads = k.shape[1]
    # Query heads of one key head stand below each other: keys are read once, never repeated.
    stacked = q.reshape(n, kv_heads, heads // kv_heads * length, -1)
    if q.device.type == "cpu" and q.shape[-1] == v.shape[-1]:
        out, lse = fused(stacked, k, v, 0.0, False, attn_mask=bias, scale=scale)
    else:
        scores = exact(stacked @ k.transpose(2, 3)) * scale
        if bias is not None:
            scores = scores + bias
        lse = scores.logsumexp(-1)
        out = (scores - lse.unsqueeze(-1)).exp().to(v.dtype) @ v
    return out.reshape(n, heads, length, -1), lse.reshape(n, heads, length)


def behind(
    q: Tensor, k: Tensor, v: Tensor, scale: float, *, causal: bool = False
) -> tuple[Tensor, Tensor]:
    """Attention of runs side by side, tokens first: q (n, L, H, D) over k, v (n, S, H_kv, D).

    Args:
        causal: S is L, and each token sees itself and those before it; else all see all.

    Returns:
        Output (n, L, H, D_v) and log-sum-exp (n, L, H) in float32 (float64 for float64).
    """
    n, length, heads, _ = q.shape
    kv_heads = k.shape[2]
    group = heads // kv_heads
    q = q.unflatten(2, (kv_heads, group)).permute(0, 2, 3, 1, 4).flatten(0, 1)
    k, v = (x.transpose(1, 2).flatten(0, 1).unsqueeze(1) for x in (k, v))
    if q.device.type == "cpu" and q.shape[-1] == v.shape[-1]:
        # Query heads of one key head look at the same memory: keys are never repeated.
        wide = (x.expand(-1, group, -1, -1) for x in (k, v))
        out, lse = fused(q, *wide, 0.0, causal, attn_mask=None, scale=scale)
    else:
        scores = exact(q @ k.transpose(2, 3)) * scale
        if causal:
            place = torch.arange(length, device=q.device)
            scores = scores.masked_fill(place[:, None] < place[None, :], float("-inf"))
        lse = scores.logsumexp(-1)
        out = (scores - lse.unsqueeze(-1)).exp().to(v.dtype) @ v
    out = out.unflatten(0, (n, kv_heads)).permute(0, 3, 1, 2, 4).flatten(2, 3)
    return out, lse.unflatten(0, (n, kv_heads)).permute(0, 3, 1, 2).flatten(2, 3)


def join(a: Tensor, a_lse: Tensor, b: Tensor, b_lse: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over two sets of keys from the attention over each, in float32.

    Outputs (..., D) and log-sum-exps (...) in, the same of the union out.
    """
    share = torch.sigmoid(b_lse - a_lse).unsqueeze(-1)
    out = torch.lerp(a.to(share.dtype), b.to(share.dtype), share)
    return out.to(a.dtype), torch.logaddexp(a_lse, b_lse)


BACKWARD_SCORES = 1 << 20
"""Most scores that are held at once in the backward pass: what a core's cache can keep."""
BACKWARD_RUN = 256
"""Positions of a causal run that are taken together: keys behind the last are left out."""


class SoftmaxPair(NamedTuple):
    """Queries and keys, gradients and values, made so that a product needs no further step.

    q and grad (..., H, D + 2), k and v (..., H_kv, D + 2): two more columns hold the log-sum-exp and
    sum(grad * out), so that q . k is the logarithm of a probability, and grad . v what the
    probability is multiplied with. The product subtracts in float32, before it rounds.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    grad: Tensor

    @classmethod
    def of(
        cls, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, grad: Tensor, scale: float
    ) -> SoftmaxPair:
        """From what the forward pass had and gave: q, out, grad (T, H, D), lse (T, H)."""
        delta = (grad.to(lse.dtype) * out).sum(-1)
        return cls(_less(q * scale, lse), _ones(k), _ones(v), _less(grad, delta))


def _less(x: Tensor, much: Tensor) -> Tensor:
    """With the columns that subtract `much`: what it is rounded to, and the rest."""
    rounded = much.to(x.dtype)
    return torch.cat([x, -rounded.unsqueeze(-1), (rounded - much).to(x.dtype).unsqueeze(-1)], -1)


def _ones(x: Tensor) -> Tensor:
    return torch.nn.functional.pad(x, (0, 2), value=1.0)


def softmax_backward(pair: SoftmaxPair, *, causal: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `behind` in scale * q, k and v, by plain products in blocks.

    The fused backward kernel takes several times as long for runs of some hundred tokens, and
    cannot let several query heads read one key head.

    Args:
        pair: with a first axis n, as q, k, v of `behind`.
        causal: as in `behind`.
    """
    n, length, heads, width = pair.q.shape
    kv_heads, width = pair.k.shape[2], width - 2
    group = heads // kv_heads
    # Query heads of one key head stand together, position by position.
    q, grad = (
        x.unflatten(2, (kv_heads, group)).transpose(1, 2).flatten(2, 3).flatten(0, 1)
        for x in (pair.q, pair.grad)
    )
    k, v = (x.transpose(1, 2).flatten(0, 1) for x in (pair.k, pair.v))
    grad_q = q.new_empty(*q.shape[:2], width)
    grad_k, grad_v = k.new_zeros(*k.shape[:2], width), v.new_zeros(*v.shape[:2], v.shape[2] - 2)
    items, rows, keys = len(q), q.shape[1], k.shape[1]
    block = BACKWARD_RUN * group if causal else max(1, BACKWARD_SCORES // keys)
    index = torch.arange(rows, device=q.device)
    for start in range(0, rows, block):
        part = slice(start, min(start + block, rows))
        seen = -(-part.stop // group) if causal else keys
        later = index[:seen] > (index[part] // group)[:, None] if causal else None
        several = max(1, BACKWARD_SCORES // ((part.stop - part.start) * seen))
        for first in range(0, items, several):
            own = slice(first, first + several), part
            above = slice(first, first + several), slice(seen)
            probs = torch.bmm(q[own], k[above].transpose(1, 2)).exp_()
            if later is not None:
                probs.masked_fill_(later, 0.0)
            grad_v[above] += torch.bmm(probs.transpose(1, 2), grad[own][..., :-2])
            change = torch.bmm(grad[own], v[above].transpose(1, 2)).mul_(probs)
            grad_q[own] = torch.bmm(change, k[above][..., :-2])
            grad_k[above] += torch.bmm(change.transpose(1, 2), q[own][..., :-2])
    grad_q = grad_q.unflatten(0, (n, kv_heads)).unflatten(2, (length, group))
    grad_q = grad_q.transpose(1, 2).flatten(2, 3)
    grad_k, grad_v = (x.unflatten(0, (n, kv_heads)).transpose(1, 2) for x in (grad_k, grad_v))
    return grad_q, grad_k, grad_v
