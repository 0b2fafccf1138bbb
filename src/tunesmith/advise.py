"""Prompting, fine-tuning or more data first: a pure function from measurements to advice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Approach = Literal["prompting", "fine-tuning", "more-data"]
FEW_ROWS = 100
"""Under about this many good rows prompting usually wins: a rule of thumb of the field."""
NEARLY = 0.95
"""A score from which training has little left to win."""


@dataclass(frozen=True, slots=True)
class Advice:
    """What to do, and why: each reason is a sentence with its numbers."""

    approach: Approach
    reasons: tuple[str, ...]


def advise(scores: Mapping[str, float], *, metric: str, rows: int, measured_on: int) -> Advice:
    """Advice from the validation rows.

    Args:
        scores: the primary metric of each arm that was measured, by its kind.
        rows: rows to train on.
        measured_on: validation rows behind the scores.
    """
    said = ", ".join(f"{name} {value:.2f}" for name, value in scores.items())
    reasons = [f"{metric} on {measured_on} validation rows: {said}."]
    if not scores:
        reasons = ["Nothing was measured: there are no validation rows, or no arm to measure."]
    cheap = {name: value for name, value in scores.items() if "tuned" not in name}
    best = max(cheap, key=lambda name: cheap[name], default=None)
    tuned = scores.get("tuned")
    if tuned is not None and best is not None:
        if tuned > cheap[best]:
            reasons.append(f"Tuned leads the best cheap way ({best}) by {tuned - cheap[best]:.2f}.")
            return Advice("fine-tuning", tuple(reasons))
        reasons.append(f"{best} does as well as the tuned model and costs no training.")
        return Advice("prompting", tuple(reasons))
    if best is not None and cheap[best] >= NEARLY:
        reasons.append(f"{best} already reaches {cheap[best]:.2f}: training has little to win.")
        return Advice("prompting", tuple(reasons))
    if rows < FEW_ROWS:
        reasons.append(f"{rows} rows to train on; under about {FEW_ROWS} prompting usually wins.")
        return Advice("more-data", tuple(reasons))
    reasons.append(f"{rows:,} rows to train on are enough to try: a narrow, repeated task.")
    return Advice("fine-tuning", tuple(reasons))
