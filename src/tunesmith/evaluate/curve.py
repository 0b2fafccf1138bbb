"""The learning curve: what more rows would bring, told from trainings on parts of the rows.

With n rows the error falls as a + b n^-c (Hestness et al. 2017, arXiv:1712.00409). Three sizes cannot
tell three numbers, so c is held between 0, where each doubling brings the same, and 1, where each
brings half of what the one before brought; within these bounds the best fit is taken. An interval
comes from refitting resampled rows with the noise that trainings of one size, but of different
seeds, have among each other: each refit takes the c that suits it, so that an unknown c makes the
interval wide.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from tunesmith.evaluate import charts
from tunesmith.evaluate.statistics import Floats, interval

SHARES: Mapping[str, float] = {"quarter": 0.25, "half": 0.5, "all": 1.0}
EXPONENTS = np.linspace(0.0, 1.0, 11)
DRAWS = 4000
FAR = 8
"""Times the rows: what lies beyond three doublings is not foretold from two."""


@dataclass(frozen=True, slots=True)
class Point:
    """One training: its seed, the rows it learned from, and the score of each validation row."""

    seed: int
    share: str
    rows: int
    scores: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Fit:
    """Curves through the points: the best one first, then those of each draw.

    Attributes:
        rows: of the largest size.
        level: score at that size, shape (1 + draws,).
        slope: gain of the score for each natural logarithm of rows, at that size.
        exponent: c.
        most: what a score can reach.
    """

    rows: int
    level: Floats
    slope: Floats
    exponent: Floats
    most: float

    def gain(self, times: float) -> Floats:
        """What `times` the rows would bring; never beyond the highest score."""
        room = np.maximum(self.most - self.level, 0.0)
        return np.minimum(self.slope * _reach(math.log(times), self.exponent), room)

    def rows_for(self, goal: float) -> Floats:
        """Rows at which each curve reaches a score; infinite where it never does."""
        missing = goal - self.level
        with np.errstate(divide="ignore", invalid="ignore"):
            reach = np.where(self.slope > 0, missing / self.slope, np.inf)
            left = 1 - self.exponent * reach
            bent = np.where(left > 0, -np.log(left) / self.exponent, np.inf)
        log = np.where(self.exponent == 0, reach, bent)
        return self.rows * np.exp(np.minimum(np.where(missing <= 0, 0.0, log), 700.0))


def nested(
    strata: Sequence[str], groups: Sequence[int], shares: Sequence[float], seed: int
) -> list[list[int]]:
    """Indices of rows for each share; a smaller part lies inside each larger one.

    Groups (of near-duplicates) stay whole: else a quarter of the rows would hold half of what they
    say. Strata (labels) have about the same share of their groups in each part.
    """
    rng = np.random.default_rng(seed)
    members: dict[int, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    by_stratum: dict[str, list[list[int]]] = {}
    for rows in members.values():
        by_stratum.setdefault(strata[rows[0]], []).append(rows)
    turns: list[tuple[float, list[int]]] = []
    for own in by_stratum.values():
        places = (rng.permutation(len(own)) + rng.random()) / len(own)
        turns += zip(places.tolist(), own, strict=True)
    turns.sort(key=lambda turn: turn[0])
    ends = np.cumsum([len(rows) for _, rows in turns])
    cuts = [int(np.abs(ends - share * len(groups)).argmin()) + 1 for share in shares]
    return [sorted(index for _, rows in turns[:cut] for index in rows) for cut in cuts]


def fit(points: Sequence[Point], clusters: Sequence[str], seed: int = 0) -> Fit:
    """Curves through points of at least two sizes, all scored on the same rows."""
    scores = np.array([point.scores for point in points], np.float64)
    sizes = np.array([point.rows for point in points], np.float64)
    rng = np.random.default_rng(seed)
    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    units = int(index.max()) + 1
    sums = np.stack([np.bincount(index, row, units) for row in (*scores, np.ones(len(index)))], 1)
    counts = rng.multinomial(units, np.full(units, 1 / units), size=DRAWS).astype(np.float64)
    totals = np.concatenate([sums.sum(axis=0, keepdims=True), counts @ sums])
    means = totals[:, :-1] / totals[:, -1:]
    noise = _between(means[0], sizes)
    if np.isin(scores, (0.0, 1.0)).all():
        # Rows that all fail, or all succeed, do not vary when resampled: one of them could have.
        noise = max(noise, 1 / units)
    means[1:] += noise * rng.standard_normal((DRAWS, len(points)))
    level, slope, exponent = _curves(means, np.log(sizes / sizes.max()))
    most = 1.0 if scores.max() <= 1 else math.inf
    return Fit(int(sizes.max()), level, slope, exponent, most)


def _between(means: Floats, sizes: Floats) -> float:
    """Standard deviation of trainings of one size, from those sizes that have several."""
    squares, freedom = 0.0, 0
    for size in set(sizes.tolist()):
        own = means[sizes == size]
        squares += float(((own - own.mean()) ** 2).sum())
        freedom += len(own) - 1
    return math.sqrt(squares / freedom) if freedom else 0.0


def _reach(log: float | Floats, exponent: float | Floats) -> Floats:
    """(1 - exp(-c x)) / c for x = log(rows / all rows): x itself where c is 0."""
    held = np.maximum(exponent, 1e-9)
    return -np.expm1(-held * log) / held


def _curves(means: Floats, logs: Floats) -> tuple[Floats, Floats, Floats]:
    """Least squares for each line of means, shape (draws, points), over all exponents."""
    middle = means.mean(axis=1, keepdims=True)
    x = np.stack([_reach(logs, c) for c in EXPONENTS])
    centred = x - x.mean(axis=1, keepdims=True)
    slopes = (means - middle) @ centred.T / (centred**2).sum(axis=1)
    explained = slopes**2 * (centred**2).sum(axis=1)
    # Of equal fits the first: the straight one.
    best = (explained > explained.max(axis=1, keepdims=True) * (1 - 1e-9)).argmax(axis=1)
    slope = slopes[np.arange(len(means)), best]
    return middle[:, 0] - slope * x.mean(axis=1)[best], slope, EXPONENTS[best]


def described(
    points: Sequence[Point], clusters: Sequence[str], *, metric: str, goal: float | None
) -> dict[str, Any]:
    """`curve`, `doubling` and `rows_for_goal` of report.json's `data_enough`."""
    found = fit(points, clusters)
    return {
        "metric": metric,
        "curve": [_entry(point, clusters) for point in sorted(points, key=_place)],
        "doubling": _doubling(found, metric),
        "rows_for_goal": _for_goal(found, metric, goal),
    }


def drawing(part: Mapping[str, Any]) -> Markup | None:
    """The chart of what `described` made; None where there is no curve."""
    if not isinstance(part["curve"], list):
        return None

    def scored(entry: Mapping[str, Any], rows: int) -> charts.Scored:
        return charts.Scored(rows, entry["value"], entry["low"], entry["high"])

    points = [scored(entry, entry["rows"]) for entry in part["curve"]]
    forecast = scored(part["doubling"]["expected"], part["doubling"]["rows"])
    return charts.learning(points, forecast, part["rows_for_goal"].get("goal"), part["metric"])


def _place(point: Point) -> tuple[int, int]:
    return point.rows, point.seed


def _entry(point: Point, clusters: Sequence[str]) -> dict[str, Any]:
    score = interval(point.scores, clusters)
    return {
        "seed": point.seed,
        "share": point.share,
        "rows": point.rows,
        "value": score.value,
        "low": score.low,
        "high": score.high,
        "n": score.n,
    }


def _spanned(values: Floats) -> tuple[float, float, float]:
    """The best fit's value between the ends of 95 % of the draws, each of which is one of them, as
    some may be infinite; what scores cannot exceed bends the draws, and may leave the fit beyond."""
    low = float(np.quantile(values[1:], 0.025, method="lower"))
    high = float(np.quantile(values[1:], 0.975, method="higher"))
    return min(max(float(values[0]), low), high), low, high


def _doubling(found: Fit, metric: str) -> dict[str, Any]:
    gain = found.gain(2.0)
    value, low, high = _spanned(gain)
    span = f"{value:+.2f} in {metric} ({low:.2f} to {high:.2f})"
    if low > 0:
        sentence = f"Twice the rows would bring {span}."
    elif high < 0:
        sentence = f"Twice the rows would take {span}: look at the rows before adding more."
    elif high < 0.015:
        sentence = f"Twice the rows would bring nothing that shows: {span}."
    else:
        sentence = f"Whether twice the rows would help cannot be told: {span}."
    then = np.clip(found.level + gain, -math.inf, found.most)
    return {
        "rows": 2 * found.rows,
        "value": value,
        "low": low,
        "high": high,
        "expected": dict(zip(("value", "low", "high"), _spanned(then), strict=True)),
        "exponent": float(found.exponent[0]),
        "sentence": sentence,
    }


def _for_goal(found: Fit, metric: str, goal: float | None) -> dict[str, Any]:
    if goal is None:
        return {"value": None, "reason": "no evaluate.goal was given"}
    rows, far = found.rows_for(goal), FAR * found.rows
    value, low, high = _spanned(rows)
    named = f"{metric} {goal:g}"
    if high <= found.rows:
        sentence = f"The present {found.rows:,} rows are enough for {named} on validation rows."
    elif low > far:
        sentence = f"{named} needs more than {far:,} rows, or something else than rows."
    elif value > far:
        sentence = (
            f"How many rows {named} needs cannot be told: {_thousands(low)} at least, "
            f"and it may be more than {far:,}."
        )
    else:
        end = f"more than {far:,}" if high > far else _thousands(high)
        sentence = f"{named} needs about {_thousands(value)} rows ({_thousands(low)} to {end})."
    if value > far:
        return {"goal": goal, "value": None, "low": low if low <= far else far, "reason": sentence}
    return {
        "goal": goal,
        "value": math.ceil(value),
        "low": math.ceil(low),
        "high": math.ceil(high) if high <= far else None,
        "sentence": sentence,
    }


def _thousands(rows: float) -> str:
    """Two digits are all that a forecast has."""
    return f"{float(f'{rows:.2g}'):,.0f}"
