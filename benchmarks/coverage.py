"""Whether intervals hold what they say: simulated arms over a stated grid: `make coverage`.

Many data sets are drawn for each cell, and the product's own intervals and tests are taken of each.
Held: 95 % intervals cover the truth in at least 93 % of the data sets; arms that are the same are
called different in at most 5 %; p is at most a in at most a of them. What stands over a limit by more
than chance allows is a failure. The figures go to benchmarks/results/coverage.json.

For speed all data sets of a cell are weighed at once, which is checked against the product's
functions on the first of each cell.
"""

from __future__ import annotations

import functools
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, ndtr

from tunesmith.evaluate import statistics
from tunesmith.evaluate.comparison import holm

Floats = NDArray[np.float64]
RESULTS = Path(__file__).parent / "results" / "coverage.json"
ROWS = (40, 100, 400)
CLUSTERS = {"each row alone": 0.0, "pairs": 0.5, "1 to 5 rows": 0.95}
"""How rows repeat prompts, and how much the answers to one prompt are alike."""
KINDS = ("binary", "smooth", "skewed", "lumped")
VALUES = (0.0, 0.005, 0.02, 0.1, 0.3, 0.5, 0.9, 0.98, 1.0)
PAIRS = (
    (0.0, 0.0), (0.02, 0.0), (0.02, 0.02), (0.1, 0.05), (0.5, 0.3), (0.5, 0.5),
    (0.95, 0.05), (0.9, 0.9), (0.98, 0.9), (1.0, 0.9), (1.0, 1.0),
)  # fmt: skip
ALIKE = (0.0, 0.9)
"""How much two arms' answers to a row go together."""
LEVELS = (0.01, 0.05, 0.1, 0.2, 0.5)
ARMS = 5
COVER, DIFFERENT = 0.93, 0.05
SETS, FEW = 500, 3


@dataclass(frozen=True, slots=True)
class Cell:
    """What one cell of the grid came to; `share` is the figure and `limit` what it is held to."""

    what: str
    rows: int
    clusters: str
    kind: str
    values: tuple[float, ...]
    alike: float
    share: float
    limit: float
    sets: int

    @property
    def held(self) -> bool:
        """Within the limit, or beyond it by no more than three standard errors of the simulation."""
        slack = 3 * (self.limit * (1 - self.limit) / self.sets) ** 0.5
        if self.what == "covers":
            return self.share >= self.limit - slack
        return self.share <= self.limit + slack


def sizes(rows: int, clusters: str) -> list[int]:
    """Rows of each prompt."""
    if clusters == "each row alone":
        return [1] * rows
    if clusters == "pairs":
        return [2] * (rows // 2)
    drawn, found = np.random.default_rng(7), list[int]()
    while sum(found) < rows:
        found.append(min(rows - sum(found), int(drawn.integers(1, 6))))
    return found


def values(kind: str, mean: float, normal: Floats) -> Floats:
    """Scores in [0, 1] with a mean, from standard normal numbers."""
    if kind == "binary" or mean in (0.0, 1.0):
        return (ndtr(normal) < mean).astype(np.float64)
    if kind in ("smooth", "skewed"):
        return np.interp(normal, *_beta(8 if kind == "smooth" else 1, mean))
    some = 2 * min(mean, 1 - mean)
    u = ndtr(normal)
    lumps = np.where(u > 1 - some, (u - 1 + some) / some, 0.0)
    return lumps if mean <= 0.5 else 1 - lumps


@functools.cache
def _beta(weight: int, mean: float) -> tuple[Floats, Floats]:
    """Normal numbers, and the values of a beta distribution that stand at the same quantiles."""
    places = np.linspace(-8, 8, 40_001)
    return places, betaincinv(weight * mean, weight * (1 - mean), ndtr(places))


class Draws:
    """Data sets of one shape: rows that repeat prompts."""

    def __init__(self, rows: int, clusters: str, sets: int, seed: int) -> None:
        self.sizes = np.array(sizes(rows, clusters))
        self.names = [f"{i:04}" for i in np.repeat(np.arange(len(self.sizes)), self.sizes)]
        self._starts = np.concatenate([[0], np.cumsum(self.sizes)[:-1]])
        self._alike, self._sets, self._rows = CLUSTERS[clusters], sets, rows
        self._rng = np.random.default_rng(seed)
        weights = np.random.default_rng(0).standard_exponential(
            (statistics.DRAWS, len(self.sizes) + 1)
        )
        self._weights, self._unseen = weights[:, :-1], weights[:, -1] * self.sizes.mean()
        self._total = self._weights @ self.sizes + self._unseen

    def normal(self) -> Floats:
        """Shape (sets, rows)."""
        ours = self._rng.standard_normal((self._sets, len(self.sizes)))
        own = self._rng.standard_normal((self._sets, self._rows))
        alike = self._alike
        return alike**0.5 * np.repeat(ours, self.sizes, axis=1) + (1 - alike) ** 0.5 * own

    def sums(self, x: Floats) -> Floats:
        """Of each prompt's rows, shape (sets, prompts)."""
        return np.add.reduceat(x, self._starts, axis=1)

    def binary(self, x: Floats) -> NDArray[np.bool_]:
        """Which data sets are of 0 and 1 and repeat no prompt."""
        return np.isin(x, (0.0, 1.0)).all(axis=1) & (len(self.sizes) == self._rows)

    def reach(
        self, x: Floats, least: Floats | float, most: Floats | float
    ) -> tuple[Floats, Floats]:
        """`statistics.reach` of the mean, of all data sets."""
        seen = self.sums(x) @ self._weights.T
        ends: list[Floats] = []
        for unseen, share in ((least, statistics.TAIL), (most, 1 - statistics.TAIL)):
            drawn = (seen + self._unseen * unseen) / self._total
            place = share * (statistics.DRAWS - 1)
            below = int(place)
            drawn.partition((below, below + 1), axis=1)
            ends.append(drawn[:, below] + (place - below) * (drawn[:, below + 1] - drawn[:, below]))
        return ends[0], ends[1]


def of_arms(draws: Draws, x: Floats) -> tuple[Floats, Floats]:
    """Ends of `statistics.interval` for each data set."""
    exact = draws.binary(x)
    low, high = draws.reach(x, 0.0, 1.0) if not exact.all() else np.empty((2, len(x)))
    for i in np.flatnonzero(exact):
        low[i], high[i] = _proportion(int(x[i].sum()), x.shape[1])
    for i in range(FEW):
        theirs = statistics.interval(x[i].tolist(), draws.names)
        assert np.allclose((theirs.low, theirs.high), (low[i], high[i]), atol=1e-9)
    return low, high


@functools.cache
def _proportion(right: int, n: int) -> tuple[float, float]:
    return statistics.clopper_pearson(right, n)


def of_pairs(draws: Draws, a: Floats, b: Floats) -> tuple[Floats, Floats]:
    """Ends of `statistics.paired` for each data set."""
    exact = draws.binary(a) & draws.binary(b)
    most = np.array([statistics.furthest(x, y) for x, y in zip(a, b, strict=True)])[:, None]
    low, high = draws.reach(a - b, -most, most) if not exact.all() else np.empty((2, len(a)))
    for i in np.flatnonzero(exact):
        low[i], high[i] = _table(*_tables(a[i : i + 1], b[i : i + 1])[0])
    for i in range(FEW):
        theirs = statistics.paired(a[i].tolist(), b[i].tolist(), draws.names)
        assert np.allclose((theirs.low, theirs.high), (low[i], high[i]), atol=1e-9)
    return low, high


def _tables(a: Floats, b: Floats) -> list[list[int]]:
    parts = (a * b, a * (1 - b), (1 - a) * b, (1 - a) * (1 - b))
    return np.stack([part.sum(axis=1) for part in parts], axis=1).astype(int).tolist()


@functools.cache
def _table(*counts: int) -> tuple[float, float]:
    return statistics.newcombe_paired(*counts)


@functools.cache
def _mcnemar(a: int, b: int) -> float:
    return statistics.mcnemar_exact(a, b)


def p_values(draws: Draws, a: Floats, b: Floats, seed: int) -> Floats:
    """Of each data set: McNemar's, or signs of whole prompts flipped, drawn once for all sets."""
    if (draws.binary(a) & draws.binary(b)).all():
        return np.array([_mcnemar(only_a, only_b) for _, only_a, only_b, _ in _tables(a, b)])
    sums = draws.sums(a - b)
    signs = np.random.default_rng(seed).integers(0, 2, (4000, sums.shape[1])) * 2.0 - 1
    extreme = np.abs(signs @ sums.T) >= np.abs(sums.sum(axis=1)) * (1 - 1e-9)
    return (extreme.sum(axis=0) + 1) / 4001


def singles(rows: int, clusters: str, sets: int, seed: int) -> Iterator[Cell]:
    """Whether the interval of an arm covers its value."""
    draws = Draws(rows, clusters, sets, seed)
    for kind, value in itertools.product(KINDS, VALUES):
        low, high = of_arms(draws, values(kind, value, draws.normal()))
        share = float(((low <= value + 1e-9) & (value - 1e-9 <= high)).mean())
        yield Cell("covers", rows, clusters, kind, (value,), 0.0, share, COVER, sets)


def pairs(rows: int, clusters: str, sets: int, seed: int) -> Iterator[Cell]:
    """Whether the interval of a difference covers it, and what is said of arms that are the same."""
    draws = Draws(rows, clusters, sets, seed)
    for kind, (a, b), alike in itertools.product(KINDS, PAIRS, ALIKE):
        first, other = draws.normal(), draws.normal()
        second = alike * first + (1 - alike**2) ** 0.5 * other
        x, y = values(kind, a, first), values(kind, b, second)
        low, high = of_pairs(draws, x, y)
        share = float(((low <= a - b + 1e-9) & (a - b - 1e-9 <= high)).mean())
        place = (rows, clusters, kind, (a, b), alike)
        yield Cell("covers", *place, share, COVER, sets)
        if a == b:
            p = p_values(draws, x, y, seed)
            called = float((((low > 0) | (high < 0)) & (p < 0.05)).mean())
            yield Cell("called different", *place, called, DIFFERENT, sets)
            for level in LEVELS:
                share = float((p <= level).mean())
                yield Cell(f"p <= {level:g}", *place, share, level, sets)


def families(rows: int, sets: int, seed: int) -> Iterator[Cell]:
    """How often any two of five arms that are the same are called different, after Holm."""
    rng = np.random.default_rng(seed)
    for value, alike in itertools.product((0.1, 0.5), ALIKE):
        first = rng.standard_normal((sets, 1, rows))
        own = rng.standard_normal((sets, ARMS, rows))
        x = values("binary", value, alike**0.5 * first + (1 - alike) ** 0.5 * own)
        p = np.array(
            [
                [_mcnemar(only_a, only_b) for _, only_a, only_b, _ in _tables(x[:, a], x[:, b])]
                for a, b in itertools.combinations(range(ARMS), 2)
            ]
        ).T
        share = float(np.mean([min(holm(one)) < 0.05 for one in p.tolist()]))
        place = (rows, "each row alone", "binary", (value,) * ARMS, alike)
        yield Cell("any of 10 pairs called different", *place, share, DIFFERENT, sets)


def grid(rows: Sequence[int], clusters: Sequence[str], sets: int, seed: int) -> Iterator[Cell]:
    """All cells."""
    for n in rows:
        for name in clusters:
            yield from singles(n, name, sets, seed)
            yield from pairs(n, name, sets, seed)
        yield from families(n, sets, seed)


def summary(cells: Sequence[Cell]) -> dict[str, Any]:
    """For each claim: how many cells, those that fail, and the worst."""
    out: dict[str, Any] = {}
    for what in dict.fromkeys(cell.what for cell in cells):
        some = [cell for cell in cells if cell.what == what]
        worst = (min if what == "covers" else max)(some, key=lambda cell: cell.share)
        beyond = [c for c in some if (c.share < c.limit if what == "covers" else c.share > c.limit)]
        out[what] = {
            "cells": len(some),
            "limit": worst.limit,
            "mean": sum(cell.share for cell in some) / len(some),
            "worst": worst.share,
            "beyond the limit": len(beyond),
            "beyond it by more than chance": sum(not cell.held for cell in some),
            "worst cell": asdict(worst),
        }
    return out


def write(path: Path, sets: int, cells: Sequence[Cell]) -> None:
    """The figures of all cells, one a line."""
    head = {"sets": sets, "columns": [*asdict(cells[0])], "summary": summary(cells)}
    lines = ",\n".join(json.dumps([*asdict(cell).values()]) for cell in cells)
    path.write_text(f'{json.dumps(head, indent=1)[:-2]},\n "cells": [\n{lines}\n]}}\n')


def main() -> int:
    """Run the grid, write the figures, and fail where one does not hold."""
    sets = int(sys.argv[1]) if len(sys.argv) > 1 else SETS
    cells: list[Cell] = []
    for cell in grid(ROWS, tuple(CLUSTERS), sets, seed=1):
        cells.append(cell)
        if not cell.held:
            print("fails", asdict(cell), flush=True)
    found = summary(cells)
    write(RESULTS, sets, cells)
    print(json.dumps(found, indent=1))
    return any(part["beyond it by more than chance"] for part in found.values())


if __name__ == "__main__":
    sys.exit(main())
