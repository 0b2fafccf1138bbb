"""What vectors of rows say: rows far from all others, near contradictions, and how many are alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tunesmith.checks.report import Finding, Severity, rows_said
from tunesmith.checks.row import NAMED_ROWS
from tunesmith.checks.suspects import Suspect, shortened
from tunesmith.data.likeness import Vectors, nearest

NEIGHBOURS = 5
FAR = 5.0
"""An outlier is so many robust standard deviations farther from its neighbours than is usual."""
FEWEST = 30
"""Rows without which nothing is usual."""
ALIKE = 0.9
"""Prompts whose vectors have this cosine ask nearly the same."""
SAME = 0.95
"""Prompts of this cosine are one question in other words."""
OTHER_ANSWER = 0.5
"""Answers below this cosine say something else."""
MOST_ALIKE = 0.5


@dataclass(frozen=True, slots=True)
class Near:
    """The nearest other rows of every row: places and cosines (rows, NEIGHBOURS).

    `framed` is how alike they are where the system message is the same too; -1 where it is not.
    """

    places: NDArray[np.intp]
    cosines: NDArray[np.float32]
    framed: NDArray[np.float32]

    @classmethod
    def of(cls, vectors: Vectors, systems: Sequence[str]) -> Near:
        """The neighbours among the rows themselves."""
        places, cosines = nearest(vectors, vectors, NEIGHBOURS, own=True)
        frames = np.unique(systems, return_inverse=True)[1]
        same = frames[places] == frames[:, None]
        return cls(places, cosines, np.where(same, cosines, np.float32(-1)))


def outliers(near: Near, where: Sequence[str], prompts: Sequence[str]) -> list[Suspect]:
    """Rows whose mean distance (1 - cosine) to their five neighbours is beyond a robust cut.

    The cut is the median and FAR times the median absolute deviation, scaled to a normal's standard
    deviation (Leys et al. 2013); distances to the k nearest as in Ramaswamy et al. 2000.
    """
    if len(where) < FEWEST:
        return []
    distance = 1 - near.cosines.mean(axis=1)
    usual = float(np.median(distance))
    spread = 1.4826 * float(np.median(np.abs(distance - usual)))
    return [
        Suspect(
            place,
            where[place],
            "outliers",
            float(distance[place]),
            f"{shortened(prompts[place])} (distance {distance[place]:.2f}, usual {usual:.2f})",
        )
        for place in np.flatnonzero(distance > usual + FAR * max(spread, 1e-6)).tolist()
    ]


def contradictions(
    near: Near, where: Sequence[str], answers: Sequence[str], said: Vectors | None
) -> list[Suspect]:
    """Rows that ask one question in other words than a neighbour, and answer differently.

    Args:
        said: vectors of the answers; None where they are labels, of which each is its own.
    """
    found: dict[int, Suspect] = {}
    for row, column in zip(*np.nonzero(near.framed >= SAME), strict=True):
        place, other = int(row), int(near.places[row, column])
        if place in found or answers[place].strip() == answers[other].strip():
            continue
        if said is not None and float(said[place] @ said[other]) >= OTHER_ANSWER:
            continue
        why = (
            f"answers {shortened(answers[place])} where {where[other]} "
            f"answers {shortened(answers[other])}"
        )
        cosine = float(near.cosines[row, column])
        found[place] = Suspect(place, where[place], "contradictions", cosine, why)
    return list(found.values())


def vendi_score(vectors: Vectors) -> float:
    """How many rows that have nothing in common would be as diverse: 1 to the number of rows.

    The exponential of the entropy of the eigenvalues of the cosines over N (Friedman and Dieng 2022,
    arXiv:2210.02410), which the smaller matrix of the widths has too.
    """
    scatter = vectors.T.astype(np.float64) @ vectors / len(vectors)
    values = np.linalg.eigvalsh(scatter)
    values = values[values > 1e-12]
    return float(np.exp(-(values * np.log(values)).sum()))


def diversity(vectors: Vectors, near: Near, where: Sequence[str]) -> Iterator[Finding]:
    """How diverse the prompts are, and which ask nearly what another asks."""
    if len(where) < 2:
        return
    alike = np.flatnonzero(near.framed.max(axis=1) >= ALIKE)
    # Rows in the densest regions first.
    densest = alike[np.argsort(-near.cosines[alike].mean(axis=1), kind="stable")]
    share = len(alike) / len(where)
    severity: Severity = "warning" if share > MOST_ALIKE else "note"
    yield Finding(
        "diversity",
        severity,
        tuple(where[int(place)] for place in densest[:NAMED_ROWS]),
        f"as diverse as {vendi_score(vectors):,.0f} rows without anything in common (Vendi score) "
        f"of {len(where):,}; {rows_said(len(alike))} ({share:.0%}) ask nearly what another asks",
        "tunesmith check --select N --out FILE keeps the N that differ most."
        if severity == "warning"
        else "Nothing needs doing; more rows help most where they differ from these.",
        len(alike),
    )
