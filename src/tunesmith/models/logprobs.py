"""Log-probabilities of chosen tokens, without ever holding all logits.

Logits are made in blocks of rows, used, and made again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tunesmith.models.kernels import exact

BLOCK = 128
"""Rows a block: at a vocabulary of 49,152 about 25 MB in float32."""

Head = Callable[[Tensor], Tensor]
"""Hidden states (N, width) -> logits (N, vocabulary)."""


def token_logprobs(
    hidden: Tensor, targets: Tensor, head: Head, weights: Sequence[Tensor] = ()
) -> Tensor:
    """log softmax(head(hidden))[targets].

    Args:
        hidden: (N, width), may need a gradient.
        targets: (N,) token ids.
        head: recomputed in the backward pass.
        weights: those of the head that are trained.

    Returns:
        (N,) natural logarithms, float32 (float64 for a float64 model).
    """
    out: Tensor = _TokenLogProbs.apply(hidden, targets, head, *weights)  # pyright: ignore[reportAssignmentType]
    return out


class _TokenLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, hidden: Tensor, targets: Tensor, head: Head, *weights: Tensor
    ) -> Tensor:
        picked: list[Tensor] = []
        totals: list[Tensor] = []
        for rows, wanted in zip(hidden.split(BLOCK), targets.split(BLOCK), strict=True):
            logits = exact(head(rows))
            picked.append(logits.gather(1, wanted[:, None]))
            totals.append(logits.logsumexp(1, keepdim=True))
        lse = torch.cat(totals)
        ctx.save_for_backward(hidden, targets, lse, *weights)
        ctx.head = head
        return torch.cat(picked).squeeze(1) - lse.squeeze(1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, targets, lse, *weights = ctx.saved_tensors
        out = torch.empty_like(hidden)
        # Summed over the blocks in the precision that sums need.
        sums = [torch.zeros_like(exact(weight)) for weight in weights]
        for start in range(0, len(hidden), BLOCK):
            part = slice(start, start + BLOCK)
            with torch.enable_grad():
                rows = hidden[part].detach().requires_grad_()
                logits = ctx.head(rows)
            # d log p(target) / d logits = onehot(target) - softmax(logits)
            grad = grads[0][part, None]
            change = exact(logits.detach()).sub(lse[part]).exp_().mul_(-grad)
            change.scatter_add_(1, targets[part, None], grad)
            out[part], *more = torch.autograd.grad(
                logits, [rows, *weights], change.to(logits.dtype)
            )
            for total, term in zip(sums, more, strict=True):
                total += term
        parts = [total.to(weight.dtype) for total, weight in zip(sums, weights, strict=True)]
        return out, None, None, *parts
