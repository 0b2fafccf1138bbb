"""Labels that the other rows contradict: confident learning over held-out probabilities."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.model_selection import StratifiedKFold

from tunesmith.checks.suspects import Suspect
from tunesmith.data.likeness import Vectors
from tunesmith.graders import structured

FOLDS = 5
FEWEST = 40
"""Rows with labels of FOLDS rows or more, below which nothing is said."""
MOST_VALUES = 30
SHRINKAGE = 0.5
SURE = 0.3
CLEARLY = 1.5

Probabilities = NDArray[np.float64]


def wrong_labels(
    vectors: Vectors, labels: Sequence[str], where: Sequence[str], *, seed: int, field: str = ""
) -> list[Suspect]:
    """Rows whose label a classifier that has not seen them contradicts.

    Confident learning (Northcutt et al. 2021, arXiv:1911.00068): five folds of a linear discriminant
    with a shrunk covariance, tempered to its held-out likelihood (Guo et al. 2017,
    arXiv:1706.04599). A row is named where its label is less likely than one drawn at random would
    be, and another label, half again as likely, at least as likely as it usually is in its own rows;
    or where its label is half as likely as that and another clearly likely. Labels of under five rows are left out.

    Args:
        field: the field of a JSON answer that the labels are of.
    """
    counts = Counter(labels)
    usable = np.array([place for place, name in enumerate(labels) if counts[name] >= FOLDS], int)
    names, given = np.unique([labels[place] for place in usable], return_inverse=True)
    if len(usable) < FEWEST or len(names) < 2:
        return []
    likely = tempered(held_out(vectors[usable], given, seed), given)
    best, named = contradicted(likely, given)
    of = f"{field} " if field else ""
    return [
        Suspect(
            int(place),
            where[int(place)],
            "labels",
            float(likely[row, best[row]] - likely[row, given[row]]),
            f"{of}{str(names[given[row]])!r}, which the others give {likely[row, given[row]]:.1%}, and "
            f"{str(names[best[row]])!r} {likely[row, best[row]]:.0%}",
        )
        for row, place in zip(np.flatnonzero(named), usable[named], strict=True)
    ]


def held_out(vectors: Vectors, given: NDArray[np.intp], seed: int) -> Probabilities:
    """Probabilities (rows, labels), each row's from the folds that it is not in."""
    out = np.zeros((len(given), int(given.max()) + 1))
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # A label with as many rows as there are folds has one row fewer in training.
        warnings.simplefilter("ignore", UserWarning)
        for train, test in folds.split(vectors, given):
            machine = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=SHRINKAGE)
            machine.fit(vectors[train], given[train])
            out[np.ix_(test, machine.classes_)] = machine.predict_proba(vectors[test])
    return out


def tempered(likely: Probabilities, given: NDArray[np.intp]) -> Probabilities:
    """The probabilities at the one temperature that makes the given labels likeliest."""
    logs = np.log(np.maximum(likely, 1e-300))

    def at(power: float) -> Probabilities:
        raised = np.exp(power * (logs - logs.max(axis=1, keepdims=True)))
        return raised / raised.sum(axis=1, keepdims=True)

    def cost(exponent: float) -> float:
        found = at(float(np.exp(exponent)))[np.arange(len(given)), given]
        return -float(np.log(np.maximum(found, 1e-300)).mean())

    # Labels are wrong here and there, and a Gaussian is too sure of itself: never sharper than it is.
    found: Any = minimize_scalar(cost, bounds=(-6, 0), method="bounded")
    return at(float(np.exp(found.x)))


def contradicted(
    likely: Probabilities, given: NDArray[np.intp]
) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """The likeliest label of each row, and whether it contradicts the given one."""
    rows, labels = likely.shape
    own = likely[np.arange(rows), given]
    usual = np.array([own[given == label].mean() for label in range(labels)])
    best = likely.argmax(axis=1)
    most = likely[np.arange(rows), best]
    # Where nothing tells the labels apart, the likeliest is hardly likelier.
    unlikely = (own < 1 / labels) & (most >= CLEARLY * own)
    return best, unlikely & ((most >= usual[best]) | ((own < 0.5 / labels) & (most > SURE)))


def json_fields(answers: Sequence[str]) -> dict[str, list[str]]:
    """Fields of JSON answers with few values, each with its value in every row; `null` where it is
    missing.
    """
    values = [dict(structured.fields(structured.load(answer))) for answer in answers]
    paths = dict.fromkeys(path for leaves in values for path in leaves if "[]" not in path)
    out: dict[str, list[str]] = {}
    for path in paths:
        column = [json.dumps(leaves.get(path), ensure_ascii=False) for leaves in values]
        if 2 <= len(set(column)) <= min(MOST_VALUES, len(column) / FOLDS):
            out[path] = column
    return out
