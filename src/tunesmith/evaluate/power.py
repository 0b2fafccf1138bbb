"""How small a difference test rows can tell, and how many rows a smaller one takes.

A paired test weighs the mean difference d of n rows against the mean square q of their differences:
a two-sided test at 5 % finds d with a power of 80 % where

    n d^2 = (1.96 sqrt(q) + 0.84 sqrt(q - d^2))^2

(Connor 1987, Biometrics 43, 207-211, for scores of 0 and 1, where q is the share of rows that the
two sides differ on, and cannot be below d itself; of grades, q is their variance and d^2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import brentq

LEVEL_Z, POWER_Z = 1.959963984540054, 0.8416212335729143
"""Normal quantiles of a two-sided test at 5 % and of a power of 80 %."""
LEAST = 1e-4
"""The smallest difference that anybody asks for."""
FEWEST = 6
"""Rows without which no test of signs falls below 5 %, whatever they say: 2 x 0.5^5 is more."""


@dataclass(frozen=True, slots=True)
class Spread:
    """What a comparison can tell follows from this.

    Attributes:
        rows: how many are measured.
        square: mean square of the rows' differences where scores are 0 and 1, and else their
            variance; of rows in clusters, that of the clusters' sums over the number of rows.
        crowd: rows in the cluster of a row, on average; 1 without clusters.
        whole: scores are 0 and 1.
    """

    rows: int
    square: float
    crowd: float = 1.0
    whole: bool = True

    def rows_for(self, difference: float) -> float:
        """Rows that tell a difference above 0, in clusters as large as now."""
        shift = self.crowd * difference**2
        square = max(self.square, self.crowd * difference) if self.whole else self.square + shift
        reach = LEVEL_Z * math.sqrt(square) + POWER_Z * math.sqrt(square - shift)
        return max(float(FEWEST), (reach / difference) ** 2)

    @property
    def alike(self) -> bool:
        """Whether grades have no spread at all."""
        return not self.whole and not self.square

    def detectable(self) -> float | None:
        """The least difference that the rows tell; None where they tell none up to 1, and where all
        grades differ alike, which says nothing of how others would."""
        if self.alike or self.rows_for(1.0) > self.rows:
            return None
        if self.rows_for(LEAST) <= self.rows:
            return LEAST

        def missing(difference: float) -> float:
            return math.log(self.rows_for(difference) / self.rows)

        return float(brentq(missing, LEAST, 1.0))  # pyright: ignore[reportArgumentType]


def worst(rows: int) -> Spread:
    """Before anything is measured: two arms that are right on half the rows each, independently."""
    return Spread(rows, 0.5)


def measured(differences: Sequence[float], clusters: Sequence[str]) -> Spread:
    """From the paired differences of at least one row; rows of a cluster stay together."""
    values = np.asarray(differences, dtype=np.float64)
    _, index, sizes = np.unique(np.asarray(clusters), return_inverse=True, return_counts=True)
    count = len(values)
    crowd = float((sizes.astype(np.float64) ** 2).sum()) / count
    whole = bool(np.isin(values, (-1.0, 0.0, 1.0)).all())
    sums = np.bincount(index, values if whole else values - values.mean())
    return Spread(count, float((sums**2).sum()) / count, crowd, whole)


def described(spread: Spread, *, rows: str = "test rows", differ: str = "") -> dict[str, Any]:
    """The spread as a part of report.json: what the rows tell, what more of them would, a sentence.

    Args:
        rows: what the rows are called.
        differ: what differs, as in `between tuned and base`.
    """
    told, of = spread.detectable(), f" {differ}" if differ else ""
    if told is None:
        found = f"{spread.rows:,} {rows} tell no difference{of}"
        if spread.alike:
            found = f"all {spread.rows:,} {rows} differ alike, which tells nothing of their spread"
        return {"value": None, "reason": found}
    smaller = float(f"{told / 2:.1g}") if told < 0.1 else round(told / 2, 2)
    wanted = [
        {"difference": d, "rows": math.ceil(spread.rows_for(d))} for d in (smaller, 0.1, 0.05)
    ]
    more = max(wanted[0]["rows"] - spread.rows, 0)
    more = math.ceil(more / 10) * 10
    return {
        "rows": spread.rows,
        "detectable": told,
        "wanted": wanted,
        "sentence": f"{spread.rows:,} {rows} tell differences{of} above {told:.2g} only; "
        f"label {more:,} more to see {smaller:g}.",
    }
