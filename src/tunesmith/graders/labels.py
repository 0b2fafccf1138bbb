"""Labels: exact match, and F1 averaged over the labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tunesmith.graders.grader import CorpusMetric, Floats, Grader

_AROUND = " \t\r\n\"'`“”‘’."


def normal(label: str) -> str:
    """The label without the spaces, quotes and full stops around it; upper case stays."""
    return label.strip(_AROUND) or label.strip()


def _counts(outputs: Sequence[str], references: Sequence[str]) -> Floats:
    """(n, 2C): for each label of the references twice its hits, then predicted plus actual."""
    wanted = [normal(reference) for reference in references]
    index = {label: i for i, label in enumerate(sorted(set(wanted)))}
    counts = np.zeros((len(wanted), 2 * len(index)))
    for row, (output, label) in enumerate(zip(outputs, wanted, strict=True)):
        given = normal(output)
        counts[row, index[label]] += 2.0 * (given == label)
        counts[row, len(index) + index[label]] += 1.0
        if given in index:
            counts[row, len(index) + index[given]] += 1.0
    return counts


def _macro_f1(sums: Floats) -> Floats:
    hits, seen = np.split(sums, 2, axis=1)
    each = np.divide(hits, seen, out=np.zeros_like(hits), where=seen > 0)
    return each.sum(axis=1) / np.maximum((seen > 0).sum(axis=1), 1)


LABELS = Grader(
    "labels",
    ("exact", "f1"),
    "exact",
    lambda output, ref: {"exact": float(normal(output) == normal(ref))},
    (CorpusMetric("f1", _counts, _macro_f1),),
)
"""`exact` for a row; `f1` is the unweighted mean, over the references' labels, of each one's F1."""
