"""Log-probabilities of chosen tokens, without ever holding all logits.

Logits are made in blocks of rows, used, and made again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tunesmith.models.kernels import exact

BLOCK = 128
"""Rows a block: at a vocabulary of 49,152 about 25 MB in float32."""

Head = Callable[[Tensor], Tensor]
"""Hidden states (N, width) -> logits (N, vocabulary)."""


class Scored(NamedTuple):
    """N given tokens under a model.

    logprobs: (N,) natural logarithms, float32 (float64 for a float64 model). hits: (N,) bool, where
    no other token's logit is larger.
    """

    logprobs: Tensor
    hits: Tensor


def score_tokens(
    hidden: Tensor, targets: Tensor, head: Head, weights: Sequence[Tensor] = ()
) -> Scored:
    """log softmax(head(hidden))[targets], and whether each target is what the model would say.

    Args:
        hidden: (N, width), may need a gradient.
        targets: (N,) token ids.
        head: recomputed in the backward pass.
        weights: those of the head that are trained.
    """
    return Scored(*_ScoreTokens.apply(hidden, targets, head, *weights))  # pyright: ignore[reportGeneralTypeIssues]


class _ScoreTokens(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, hidden: Tensor, targets: Tensor, head: Head, *weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        picked: list[Tensor] = []
        totals: list[Tensor] = []
        peaks: list[Tensor] = []
        for rows, wanted in zip(hidden.split(BLOCK), targets.split(BLOCK), strict=True):
            logits = exact(head(rows))
            picked.append(logits.gather(1, wanted[:, None]))
            peak = logits.amax(1, keepdim=True)
            # The operations of logsumexp, bit for bit, which would look for the peak once more.
            totals.append((logits - peak).exp_().sum(1, keepdim=True).log_().add_(peak))
            peaks.append(peak)
        lse, chosen = torch.cat(totals), torch.cat(picked)
        ctx.save_for_backward(hidden, targets, lse, *weights)
        ctx.head = head
        hits = (chosen == torch.cat(peaks)).squeeze(1)
        ctx.mark_non_differentiable(hits)
        return chosen.squeeze(1) - lse.squeeze(1), hits

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
