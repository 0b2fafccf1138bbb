"""How far raters agree beyond chance, and how often one arm is chosen over another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tunesmith.evaluate import statistics
from tunesmith.evaluate.statistics import Floats, Interval

Choices = Mapping[str, str]
"""What one rater said: {row: value}. Rows that it did not rate are not in it."""


def krippendorff(raters: Sequence[Choices], clusters: Mapping[str, str]) -> Interval | None:
    """Krippendorff's alpha for names: 1 is agreement, 0 what chance would give, below 0 less.

    Any number of raters, who need not have rated the same rows (Krippendorff 2011, "Computing
    Krippendorff's Alpha-Reliability", section E; for two raters of the same rows close to Cohen's
    kappa). The interval keeps rows of a cluster together.

    Args:
        clusters: {row: cluster}.

    Returns:
        None where no row has two ratings. Where all ratings are one value, alpha has no meaning:
        None as well.
    """
    named = sorted({value for rater in raters for value in rater.values()})
    index = {value: i for i, value in enumerate(named)}
    shared = [
        (row, [index[rater[row]] for rater in raters if row in rater])
        for row in sorted({row for rater in raters for row in rater})
    ]
    shared = [(row, said) for row, said in shared if len(said) > 1]
    if not shared or len({value for _, said in shared for value in said}) < 2:
        return None
    counts = np.stack([_coincidences(said, len(named)) for _, said in shared])
    return statistics.corpus_interval(counts, _alpha, [clusters[row] for row, _ in shared])


def _coincidences(said: Sequence[int], values: int) -> Floats:
    """Ordered pairs of a row's ratings by their values, flattened; the row weighs its ratings."""
    seen = np.bincount(said, minlength=values).astype(np.float64)
    pairs = np.outer(seen, seen) - np.diag(seen)
    return (pairs / (len(said) - 1)).ravel()


def _alpha(totals: Floats) -> Floats:
    size = round(totals.shape[1] ** 0.5)
    table = totals.reshape(-1, size, size)
    ratings = table.sum(axis=(1, 2))
    each = table.sum(axis=2)
    observed = ratings - np.trace(table, axis1=1, axis2=2)
    expected = (ratings**2 - (each**2).sum(axis=1)) / np.maximum(ratings - 1, 1)
    agreed = np.divide(observed, expected, out=np.zeros_like(observed), where=expected > 0)
    return 1 - agreed


def win_rate(outcomes: Sequence[float], clusters: Sequence[str]) -> Interval | None:
    """Share of comparisons that an arm wins, a tie being half a win; None without comparisons.

    Args:
        outcomes: 1 won, 0.5 tied, 0 lost.
    """
    return statistics.interval(outcomes, clusters) if outcomes else None
