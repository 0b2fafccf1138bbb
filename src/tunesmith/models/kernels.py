"""Softmax attention and its gradient over plain tensors: no structure, no model."""

from __future__ import annotations

import torch
from torch import Tensor

fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
"""The CPU's kernel behind scaled_dot_product_attention: it gives the log-sum-exp too."""


def exact(scores: Tensor) -> Tensor:
    """Scores or logits in the precision that a softmax needs."""
    return scores if scores.dtype == torch.float64 else scores.float()


def flash(
    q: Tensor, k: Tensor, v: Tensor, distance: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention of q (n, H, L, D) over k, v (n, H_kv, S, D) where distance (n, L, S) >= 0.

    Returns:
        Output (n, H, L, D_v) and log-sum-exp (n, H, L) in float32 (float64 for float64).
    """
    n, heads, length, _ = q.shape
    kv_heads = k.shape[1]
    group = heads // kv_heads
    # Query heads of one key head stand below each other: keys are read once, never repeated.
    stacked = q.reshape(n, kv_heads, group * length, -1)
    hidden = None if distance is None else (distance < 0)[:, None]
    if q.device.type == "cpu" and q.shape[-1] == v.shape[-1]:
        mask = None
        if hidden is not None:
            mask = torch.zeros(hidden.shape, dtype=q.dtype).masked_fill_(hidden, float("-inf"))
            mask = mask.expand(n, 1, length, -1).repeat(1, 1, group, 1)
        out, lse = fused(stacked, k, v, 0.0, False, attn_mask=mask, scale=scale)
    else:
        scores = exact(stacked @ k.transpose(2, 3)) * scale
        if hidden is not None:
            scores = scores.masked_fill(hidden.repeat(1, 1, group, 1), float("-inf"))
        lse = scores.logsumexp(-1)
        out = (scores - lse.unsqueeze(-1)).exp().to(v.dtype) @ v
    return out.reshape(n, heads, length, -1), lse.reshape(n, heads, length)


def join(a: Tensor, a_lse: Tensor, b: Tensor, b_lse: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over two sets of keys from the attention over each, in float32.

    Outputs (..., D) and log-sum-exps (...) in, the same of the union out.
    """
    lse = torch.logaddexp(a_lse, b_lse)
    a_share, b_share = ((x - lse).exp().unsqueeze(-1) for x in (a_lse, b_lse))
    return (a * a_share + b * b_share).to(a.dtype), lse


BACKWARD_SCORES = 1 << 24
"""Most scores that are held at once in the backward pass: 64 MB in float32."""


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
    """Gradients of q (b, M, D), k and v (b, S, D), by plain products in blocks of queries.

    The fused backward kernel takes four times as long for runs of some hundred tokens, and cannot
    let several query heads read one key head.

    Args:
        lse, delta: (b, M, 1), of the whole softmax and sum(grad * out).
        causal: length of a run: query m sees keys up to m mod length; 0 sees all.
    """
    grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
    block = max(1, BACKWARD_SCORES // (len(q) * k.shape[1]))
    index = torch.arange(q.shape[1], device=q.device)
    keys = torch.arange(k.shape[1], device=q.device)
    for start in range(0, q.shape[1], block):
        part = slice(start, start + block)
        scores = torch.bmm(q[:, part], k.transpose(1, 2)).to(lse.dtype)
        probs = scores.mul_(scale).sub_(lse[:, part]).exp_()
        if causal:
            probs.masked_fill_(keys > (index[part] % causal)[:, None], 0.0)
        grad_v += torch.bmm(probs.to(q.dtype).transpose(1, 2), grad[:, part])
        change = torch.bmm(grad[:, part], v.transpose(1, 2)).to(lse.dtype)
        change = change.sub_(delta[:, part]).mul_(probs).mul_(scale).to(q.dtype)
        grad_q[:, part] = torch.bmm(change, k)
        grad_k += torch.bmm(change.transpose(1, 2), q[:, part])
    return grad_q, grad_k, grad_v
