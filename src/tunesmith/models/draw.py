"""What becomes of logits before a token is taken: penalties, temperature, top_p."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

NUCLEUS = 512
"""Tokens that nearly always hold top_p of the mass: sorting the whole vocabulary takes longer than
the model does."""


def penalised(logits: Tensor, charged: Sequence[tuple[Mapping[int, int], float, float]]) -> Tensor:
    """Logits (N, vocabulary) less what tokens cost that an answer has, as OpenAI's API defines it.

    Args:
        charged: for each row, how often each token was sampled, the frequency penalty, which is
            taken as many times, and the presence penalty, which is taken once.
    """
    costs = [
        (place, token, count * frequency + presence)
        for place, (counts, frequency, presence) in enumerate(charged)
        if frequency or presence
        for token, count in counts.items()
    ]
    if not costs:
        return logits
    places, tokens, values = (
        torch.tensor(x, device=logits.device) for x in zip(*costs, strict=True)
    )
    return logits.index_put((places, tokens), -values.to(logits.dtype), accumulate=True)


def draw(logits: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> int:
    """One token at a temperature from the smallest set whose mass reaches top_p."""
    probs = torch.softmax(logits.cpu().double() / temperature, 0)
    if top_p < 1:
        ranked, order = probs.topk(min(NUCLEUS, len(probs)))
        if float(ranked.sum()) < top_p:
            ranked, order = probs.sort(descending=True)
        keep = ranked.cumsum(0) - ranked < top_p
        probs = torch.zeros_like(probs).index_copy_(0, order[keep], ranked[keep])
    return int(torch.multinomial(probs, 1, generator=generator))
