"""Chains into packed batches of bounded size."""

from __future__ import annotations

from collections.abc import Sequence

from tunesmith.models.tree import PackedBatch, Path, plant


def pack(chains: Sequence[Path], *, max_tokens: int, share: bool = True) -> list[PackedBatch]:
    """Forests over all chains, each of at most `max_tokens` distinct tokens.

    A chain longer than that is a batch of its own. Chains that begin alike stay together.
    """
    if not chains:
        return []
    whole = plant(chains, share=share)
    if whole.size <= max_tokens or len(chains) == 1:
        return [whole]
    ordered = sorted(chains, key=lambda chain: chain.ids)
    half = len(ordered) // 2
    return [
        batch
        for part in (ordered[:half], ordered[half:])
        for batch in pack(part, max_tokens=max_tokens, share=share)
    ]
