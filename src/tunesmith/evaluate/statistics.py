"""Intervals and p-values that hold for small samples; all intervals are 95 %, all tests two-sided.

Everything that is resampled is given as sums: what each cluster of rows adds to a statistic that
is a function of totals. A mean is then sum(x) / sum(1), macro F1 a function of 2C totals, and the
weights of `reach` and the clusters are one matrix product each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv
from scipy.stats import binomtest

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]
"""Totals, shape (draws, k) -> the statistic of each draw, shape (draws,)."""

Z = 1.959963984540054
TAIL = 0.025
DRAWS = 4000
"""Sets of weights behind an interval."""
_EXACT_SIGNS = 14


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate from `n` rows with its 95 % interval, which always contains it."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class Difference:
    """A paired difference over `n` rows with its 95 % interval and two-sided p-value."""

    value: float
    low: float
    high: float
    p: float
    n: int


def wilson(successes: float, n: float) -> tuple[float, float]:
    """Score interval of a proportion (Wilson 1927, doi:10.1080/01621459.1927.10502953)."""
    share = successes / n
    middle = (share + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z * math.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n)) / (1 + Z * Z / n)
    return max(min(middle - half, share), 0.0), min(max(middle + half, share), 1.0)


def newcombe_paired(
    both: float, only_a: float, only_b: float, neither: float
) -> tuple[float, float]:
    """Interval of the difference of two proportions measured on the same rows.

    Method 10 of Newcombe 1998 (Statistics in Medicine 17, 2635-2650): the Wilson limits of the
    two proportions, squared and added with their correlation, which is corrected for continuity.
    """
    n = both + only_a + only_b + neither
    a, b = both + only_a, both + only_b
    low_a, high_a = wilson(a, n)
    low_b, high_b = wilson(b, n)
    cross = both * neither - only_a * only_b
    cross = max(cross - n / 2, 0.0) if cross > 0 else cross
    margins = a * (n - a) * b * (n - b)
    phi = cross / math.sqrt(margins) if margins > 0 else 0.0
    a, b = a / n, b / n
    down = (a - low_a) ** 2 - 2 * phi * (a - low_a) * (high_b - b) + (high_b - b) ** 2
    up = (high_a - a) ** 2 - 2 * phi * (high_a - a) * (b - low_b) + (b - low_b) ** 2
    return a - b - math.sqrt(max(down, 0.0)), a - b + math.sqrt(max(up, 0.0))


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """p-value that a and b are right equally often: a binomial test of the rows they differ on."""
    if only_a + only_b == 0:
        return 1.0
    return float(binomtest(only_a, only_a + only_b, 0.5).pvalue)


def clopper_pearson(successes: float, n: float) -> tuple[float, float]:
    """Exact interval of a proportion (Clopper and Pearson 1934, doi:10.1093/biomet/26.4.404)."""
    failures = n - successes
    low = float(betaincinv(successes, failures + 1, TAIL)) if successes > 0 else 0.0
    high = float(betaincinv(successes + 1, failures, 1 - TAIL)) if failures > 0 else 1.0
    return low, high


def reach(
    sums: Floats, statistic: Statistic, least: Floats, most: Floats, seed: int = 0
) -> tuple[float, float]:
    """How low and how high a statistic may be where the units seen are not all that there are.

    One more unit stands for all that was not seen: at its least for the lower end, at its most for
    the upper one. All units get weights at random (a flat Dirichlet), and the statistic's quantiles
    are the ends. This is the bound of Gaffke (2005, Mathematical Methods of Statistics 14) for means
    of bounded values, which is Clopper and Pearson's where they are 0 and 1; it covers in small and
    skewed samples, where resampling alone does not (Learned-Miller and Thomas 2019,
    arXiv:1905.06208; `make coverage`).

    Args:
        sums: what each independent unit (a row, or a cluster of rows) adds, shape (units, k).
        least, most: what the unit that was not seen adds at its worst and at its best, shape (k,).
    """
    rng = np.random.default_rng(seed)
    units = len(sums)
    # In blocks: the matrix of weights has draws x units entries.
    block = max(1, min(DRAWS, 2_000_000 // units))
    ends: tuple[list[Floats], list[Floats]] = ([], [])
    for start in range(0, DRAWS, block):
        weights = rng.standard_exponential((min(block, DRAWS - start), units + 1))
        seen = weights[:, :-1] @ sums
        for end, unseen in zip(ends, (least, most), strict=True):
            end.append(statistic(seen + weights[:, -1:] * unseen))
    low, high = (np.concatenate(end) for end in ends)
    return float(np.quantile(low, TAIL)), float(np.quantile(high, 1 - TAIL))


def permutation_p(differences: Floats, seed: int = 0) -> float:
    """p-value that paired differences are as likely positive as negative (signs flipped at random).

    Exact over all signs where at most 14 differences are not zero; else 10,000 draws, counted
    with the observed one among them (Phipson and Smyth 2010, arXiv:1603.05766).
    """
    moved = differences[differences != 0]
    observed = abs(float(moved.sum())) * (1 - 1e-9)
    if len(moved) <= _EXACT_SIGNS:
        bits = np.arange(1 << len(moved))[:, None] >> np.arange(len(moved)) & 1
        return float((np.abs((2.0 * bits - 1) @ moved) >= observed).mean())
    rng, hits = np.random.default_rng(seed), 0
    for _ in range(10):
        signs = rng.integers(0, 2, size=(1000, len(moved))) * 2.0 - 1
        hits += int((np.abs(signs @ moved) >= observed).sum())
    return (hits + 1) / 10_001


def interval(values: Sequence[float], clusters: Sequence[str], seed: int = 0) -> Interval:
    """Mean of the values; rows of a cluster stay together.

    Clopper and Pearson's interval where all are 0 or 1. Values within [0, 1] are taken to be a
    metric's, which may be 0 or 1 on rows that were not seen; others may be what a cluster that was
    seen was at the extreme.
    """
    x = np.asarray(values, dtype=np.float64)
    value = float(x.mean())
    if _binary(x) and len(set(clusters)) == len(x):
        low, high = clopper_pearson(float(x.sum()), len(x))
    else:
        sums = _by_cluster(np.stack([x, np.ones_like(x)], 1), clusters)
        ends = _of_mean(sums, 0, 1) if _bounded(x) else _extremes(sums)
        low, high = reach(sums, _mean, *ends, seed)
    # Sums in another order round differently.
    return Interval(value, min(low, value), max(high, value), len(x))


def corpus_interval(
    counts: Floats, statistic: Statistic, clusters: Sequence[str], seed: int = 0
) -> Interval:
    """A statistic of all rows' totals; `counts` is what each row adds, shape (n, k).

    A unit that was not seen may be what the one was that pulls the statistic furthest.
    """
    sums = _by_cluster(counts, clusters)
    total = sums.sum(axis=0)
    value = float(statistic(total[None])[0])
    pull = statistic(total - sums) if len(sums) > 1 else np.zeros(1)
    low, high = reach(sums, statistic, sums[pull.argmax()], sums[pull.argmin()], seed)
    if high - low < 1e-12 and value in (0.0, 1.0):
        low, high = clopper_pearson(value * len(sums), len(sums))
    return Interval(value, min(low, value), max(high, value), len(counts))


def _of_mean(sums: Floats, low: float, high: float) -> tuple[Floats, Floats]:
    """A cluster of mean size, all of it `low`, and all of it `high`."""
    size = float(sums[:, 1].mean())
    return np.array([size * low, size]), np.array([size * high, size])


def _extremes(sums: Floats) -> tuple[Floats, Floats]:
    means = _mean(sums)
    return _of_mean(sums, float(means.min()), float(means.max()))


def paired(
    a: Sequence[float], b: Sequence[float], clusters: Sequence[str], seed: int = 0
) -> Difference:
    """Mean of a - b over the same rows.

    0 and 1 on both sides: Newcombe's interval with the exact McNemar test. Otherwise, and
    wherever rows repeat a prompt, `reach` and sign flips of whole clusters. A row that was not seen
    may differ as much as any that was, in either direction; where too little was seen to say how
    much that is (`furthest`), by all of the range.
    """
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    difference, n = x - y, len(x)
    value = float(difference.mean())
    if _binary(x) and _binary(y) and len(set(clusters)) == n:
        only_a, only_b = int((difference > 0).sum()), int((difference < 0).sum())
        both = float((x * y).sum())
        low, high = newcombe_paired(both, only_a, only_b, n - both - only_a - only_b)
        p = mcnemar_exact(only_a, only_b)
        return Difference(value, min(low, value), max(high, value), p, n)
    sums = _by_cluster(np.stack([difference, np.ones_like(x)], 1), clusters)
    most = furthest(x, y)
    low, high = reach(sums, _mean, *_of_mean(sums, -most, most), seed)
    p = permutation_p(sums[:, 0], seed)
    return Difference(value, min(low, value), max(high, value), p, n)


def furthest(a: Floats, b: Floats) -> float:
    """How far two arms may be apart on a row that was not seen.

    As far as on any that was. But scores in [0, 1] that span less than half of it, or that nowhere
    differ, say little of the rows to come (40 scores near 0 may be of an arm that is right on one
    row in 50): there, by 1.
    """
    both = np.concatenate([a, b])
    apart = float(np.abs(a - b).max())
    unsure = _bounded(both) and (np.ptp(both) < 0.5 or apart == 0)
    return 1.0 if unsure else apart


def _bounded(values: Floats) -> bool:
    return bool((values >= 0).all() and (values <= 1).all())


def _binary(values: Floats) -> bool:
    return bool(np.isin(values, (0.0, 1.0)).all())


def _mean(totals: Floats) -> Floats:
    return totals[:, 0] / totals[:, 1]


def _by_cluster(rows: Floats, clusters: Sequence[str]) -> Floats:
    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.zeros((int(index.max()) + 1, rows.shape[1]))
    np.add.at(sums, index, rows)
    return sums
