"""Do rows of the user's own test or validation file stand among the training rows?

A split that tunesmith cuts itself has none: groups of near-duplicates stay on one side.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from tunesmith.checks.report import Finding, rows_said
from tunesmith.checks.row import NAMED_ROWS, said
from tunesmith.data.split import Split


def leakage(split: Split) -> Iterator[Finding]:
    """Rows that the split took out of training for their held-out prompt, and near ones left in."""
    if split.leaked:
        yield Finding(
            "leakage",
            "warning",
            tuple(said(row.source) for row in islice(split.leaked_rows(), NAMED_ROWS)),
            f"{rows_said(split.leaked)} taken out of training, because their prompt stands in the "
            "test or validation file",
            "Nothing needs doing; remove them from the training file to see this no more.",
            split.leaked,
        )
    if split.near_leaked:
        ours, theirs = split.near_leaks[0]
        yield Finding(
            "leakage",
            "warning",
            tuple(said(source) for source, _ in split.near_leaks[:NAMED_ROWS]),
            f"{rows_said(split.near_leaked)} of the training data nearly repeat a row of the test "
            f"or validation file, as {said(ours)} does {said(theirs)}: scores will be too good",
            "Take them out of the training file; or leave --test and --validation away, so that "
            "tunesmith splits by groups.",
            split.near_leaked,
        )
