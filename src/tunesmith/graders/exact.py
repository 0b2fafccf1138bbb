"""Exact match of the whole answer, white space at its ends aside."""

from __future__ import annotations

from tunesmith.graders.grader import Grader


def same(output: str, reference: str) -> float:
    """1.0 where the two texts are the same up to white space at their ends, else 0.0."""
    return float(output.strip() == reference.strip())


EXACT = Grader("exact", ("exact",), "exact", lambda output, ref: {"exact": same(output, ref)})
