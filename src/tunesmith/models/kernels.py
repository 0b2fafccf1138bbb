"""Softmax attention and its gradient over plain tensors: no structure, no model."""

from __future__ import annotations

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


def causal(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """As `flash`, each of a run's L tokens seeing itself and those before it."""
    group = q.shape[1] // k.shape[1]
    if q.device.type == "cpu" and q.shape[-1] == v.shape[-1]:
        wide = (x.repeat_interleave(group, 1) for x in (k, v))
        return fused(q, *wide, 0.0, True, attn_mask=None, scale=scale)
    place = torch.arange(q.shape[2], device=q.device)
    distance = (place[:, None] - place[None, :]).expand(len(q), -1, -1)
    return flash(q, k, v, hide(distance, group, torch.float32), scale)


def join(a: Tensor, a_lse: Tensor, b: Tensor, b_lse: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over two sets of keys from the attention over each, in float32.

    Outputs (..., D) and log-sum-exps (...) in, the same of the union out.
    """
    share = torch.sigmoid(b_lse - a_lse).unsqueeze(-1)
    out = torch.lerp(a.to(share.dtype), b.to(share.dtype), share)
    return out.to(a.dtype), torch.logaddexp(a_lse, b_lse)


BACKWARD_SCORES = 1 << 20
"""Most scores that are held at once in the backward pass: what a core's cache can keep."""
BACKWARD_RUN = 128
"""Positions of a causal run that are taken together: keys behind the last are left out."""


def softmax_backward(
    q: Tensor,
    grad: Tensor,
    lse: Tensor,
    delta: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    causal: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q (b, M, D), k and v (b, S, D), by plain products in blocks.

    The fused backward kernel takes several times as long for runs of some hundred tokens, and
    cannot let several query heads read one key head.

    Args:
        lse, delta: (b, M, 1), of the whole softmax and sum(grad * out).
        causal: queries of one position, which stand together: query m sees keys up to
            m // causal; 0 sees all.
    """
    grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
    items, length = q.shape[:2]
    rows = BACKWARD_RUN * causal or max(1, BACKWARD_SCORES // k.shape[1])
    index = torch.arange(length, device=q.device)
    for start in range(0, length, rows):
        part = slice(start, min(start + rows, length))
        seen = -(-part.stop // causal) if causal else k.shape[1]
        later = index[:seen] > (index[part] // causal)[:, None] if causal else None
        several = max(1, BACKWARD_SCORES // ((part.stop - part.start) * seen))
        for first in range(0, items, several):
            own = slice(first, first + several), part
            keys = slice(first, first + several), slice(seen)
            scores = torch.bmm(q[own], k[keys].transpose(1, 2)).to(lse.dtype)
            probs = scores.mul_(scale).sub_(lse[own]).exp_()
            if later is not None:
                probs.masked_fill_(later, 0.0)
            grad_v[keys] += torch.bmm(probs.to(q.dtype).transpose(1, 2), grad[own])
            change = torch.bmm(grad[own], v[keys].transpose(1, 2)).to(lse.dtype)
            change = change.sub_(delta[own]).mul_(probs).mul_(scale).to(q.dtype)
            grad_q[own] = torch.bmm(change, k[keys])
            grad_k[keys] += torch.bmm(change.transpose(1, 2), q[own])
    return grad_q, grad_k, grad_v
