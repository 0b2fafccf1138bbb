"""Intervals and p-values that hold for small samples; all intervals are 95 %, all tests two-sided.

Everything that is resampled is given as sums: what each cluster of rows adds to a statistic that
is a function of totals. A mean is then sum(x) / sum(1), macro F1 a function of 2C totals, and the
bootstrap, its jackknife and the clusters are one matrix product each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri
from scipy.stats import binomtest

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]
"""Totals, shape (draws, k) -> the statistic of each draw, shape (draws,)."""

Z = 1.959963984540054
_DRAWS = 4000
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


def bca(sums: Floats, statistic: Statistic, seed: int = 0) -> tuple[float, float]:
    """Bias-corrected and accelerated bootstrap (Efron 1987, doi:10.1080/01621459.1987.10478410).

    Args:
        sums: what each independent unit (a row, or a cluster of rows) adds, shape (units, k).
    """
    units = len(sums)
    value = float(statistic(sums.sum(axis=0, keepdims=True))[0])
    draws = statistic(_resampled_totals(sums, seed))
    if units < 2 or np.ptp(draws) < 1e-12:
        return value, value
    without = statistic(sums.sum(axis=0, keepdims=True) - sums)
    pull = without.mean() - without
    spread = float((pull**2).sum())
    acceleration = float((pull**3).sum()) / (6 * spread**1.5) if spread > 0 else 0.0
    below = float((draws < value).mean() + (draws == value).mean() / 2)
    bias = float(ndtri(np.clip(below, 1 / (_DRAWS + 1), 1 - 1 / (_DRAWS + 1))))
    shifted = bias + np.array([-Z, Z])
    quantiles = ndtr(bias + shifted / np.maximum(1 - acceleration * shifted, 1e-6))
    low, high = np.quantile(draws, quantiles)
    return min(float(low), value), max(float(high), value)


def _resampled_totals(sums: Floats, seed: int) -> Floats:
    rng = np.random.default_rng(seed)
    units = len(sums)
    # In blocks: the matrix of counts would have draws x units entries.
    block = max(1, min(_DRAWS, 2_000_000 // units))
    totals: list[Floats] = []
    for start in range(0, _DRAWS, block):
        size = min(block, _DRAWS - start)
        counts = rng.multinomial(units, np.full(units, 1 / units), size=size)
        totals.append(counts.astype(np.float64) @ sums)
    return np.concatenate(totals)


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
    """Mean of the values: Wilson where all are 0 or 1, else BCa; rows of a cluster stay together."""
    x = np.asarray(values, dtype=np.float64)
    repeated = len(set(clusters)) < len(x)
    value = float(x.mean())
    if _binary(x) and not repeated:
        low, high = wilson(float(x.sum()), len(x))
    else:
        low, high = bca(_by_cluster(np.stack([x, np.ones_like(x)], 1), clusters), _mean, seed)
    return Interval(value, *_widened(value, low, high, len(set(clusters))), len(x))


def corpus_interval(
    counts: Floats, statistic: Statistic, clusters: Sequence[str], seed: int = 0
) -> Interval:
    """A statistic of all rows' totals, BCa; `counts` is what each row adds, shape (n, k)."""
    low, high = bca(_by_cluster(counts, clusters), statistic, seed)
    value = float(statistic(counts.sum(axis=0)[None])[0])
    return Interval(value, *_widened(value, low, high, len(set(clusters))), len(counts))


def _widened(value: float, low: float, high: float, units: int) -> tuple[float, float]:
    """Rows that are all 0 or all 1 resample to no width; Wilson's interval has one."""
    if low == high and value in (0.0, 1.0):
        low, high = wilson(value * units, units)
    # Sums in another order round differently.
    return min(low, value), max(high, value)


def paired(
    a: Sequence[float], b: Sequence[float], clusters: Sequence[str], seed: int = 0
) -> Difference:
    """Mean of a - b over the same rows.

    0 and 1 on both sides: Newcombe's interval with the exact McNemar test. Otherwise, and
    wherever rows repeat a prompt, BCa and sign flips of whole clusters.
    """
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    difference, n = x - y, len(x)
    value = float(difference.mean())
    table = (float((x * y).sum()), int((difference > 0).sum()), int((difference < 0).sum()))
    if _binary(x) and _binary(y) and len(set(clusters)) == n:
        low, high = newcombe_paired(*table, n - sum(table))
        p = mcnemar_exact(*table[1:])
        return Difference(value, min(low, value), max(high, value), p, n)
    sums = _by_cluster(np.stack([difference, np.ones_like(x)], 1), clusters)
    low, high = bca(sums, _mean, seed)
    if low == high and _binary(x) and _binary(y):
        scale = len(sums) / n
        low, high = newcombe_paired(*(scale * k for k in (*table, n - sum(table))))
    p = permutation_p(sums[:, 0], seed)
    return Difference(value, min(low, value), max(high, value), p, n)


def _binary(values: Floats) -> bool:
    return bool(np.isin(values, (0.0, 1.0)).all())


def _mean(totals: Floats) -> Floats:
    return totals[:, 0] / totals[:, 1]


def _by_cluster(rows: Floats, clusters: Sequence[str]) -> Floats:
    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.zeros((int(index.max()) + 1, rows.shape[1]))
    np.add.at(sums, index, rows)
    return sums
