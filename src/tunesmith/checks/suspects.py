"""Rows that a look with models points at, each with the reason, and the finding made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.checks.report import Finding, Severity, rows_said
from tunesmith.checks.row import NAMED_ROWS

EXPLAINED = 3


@dataclass(frozen=True, slots=True)
class Suspect:
    """A row that something speaks against.

    Attributes:
        place: of the row among those that were looked at.
        row: FILE:LINE.
        check: what found it.
        score: how strongly, in the check's own unit; higher is worse.
        why: a clause for the user.
    """

    place: int
    row: str
    check: str
    score: float
    why: str


def told(
    suspects: Sequence[Suspect], severity: Severity, what: str, remedy: str
) -> tuple[Finding, ...]:
    """The finding "N rows WHAT: the worst of them with their reasons", or none."""
    if not suspects:
        return ()
    worst = sorted(suspects, key=lambda suspect: -suspect.score)
    reasons = "; ".join(f"{item.row} {item.why}" for item in worst[:EXPLAINED])
    message = f"{rows_said(len(worst))} {what}: {reasons}"
    named = tuple(item.row for item in worst[:NAMED_ROWS])
    return (Finding(worst[0].check, severity, named, message, remedy, len(worst)),)


def shortened(text: str, most: int = 60) -> str:
    """A text on one line and in quotes, cut where it is long."""
    line = " ".join(text.split())
    return repr(line if len(line) <= most else f"{line[:most]}…")
