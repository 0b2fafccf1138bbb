"""What a grader is: pure functions from what was written and what was wanted to numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class CorpusMetric:
    """A metric of a whole set of rows that is a function of sums over its rows, such as macro F1.

    Sums can be taken again over any resampling of the rows, so an interval comes at no cost.

    Attributes:
        counts: (outputs, references), n each -> what each row adds, shape (n, k).
        value: sums over rows, shape (draws, k) -> the metric of each draw, shape (draws,).
    """

    name: str
    counts: Callable[[Sequence[str], Sequence[str]], Floats]
    value: Callable[[Floats], Floats]


@dataclass(frozen=True, slots=True)
class Grader:
    """Scores one answer against its reference.

    Attributes:
        metrics: every metric it gives, those of `corpus` included.
        primary: the metric that a verdict is about when this grader decides; one of a row.
        grade: (output, reference) -> values in [0, 1] or a ratio; a metric that has no meaning
            for this row is left out.
        corpus: metrics that only a whole set of rows has.
    """

    name: str
    metrics: tuple[str, ...]
    primary: str
    grade: Callable[[str, str], Mapping[str, float]]
    corpus: tuple[CorpusMetric, ...] = ()
