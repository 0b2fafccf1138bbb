"""Labels: how often each occurs, where the answers are labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from tunesmith.checks.report import Finding
from tunesmith.checks.row import Row
from tunesmith.data.examples import Conversation

LONGEST_LABEL = 64
MOST_LABELS = 1000
ROWS_A_LABEL = 3
"""Answers are labels when they repeat at least so often on average."""
RARE = 5
DOMINANT = 0.8
NAMED_LABELS = 50


class Labels:
    """Counts short answers until they turn out not to be labels."""

    def __init__(self) -> None:
        self._on = True
        self._counts: Counter[str] = Counter()
        self._rows: dict[str, list[str]] = {}

    def see(self, row: Row) -> None:
        """Count a row's answer."""
        if not self._on:
            return
        text = row.answer
        short = 0 < len(text) <= LONGEST_LABEL and "\n" not in text and text[0] not in "{[<"
        if not short or not isinstance(row.example, Conversation) or len(self._rows) > MOST_LABELS:
            self._on = False
            return
        self._counts[text] += 1
        rows = self._rows.setdefault(text, [])
        if len(rows) < RARE:
            rows.append(row.where)

    @property
    def counts(self) -> tuple[tuple[str, int], ...] | None:
        """The most frequent labels, or None where the answers are no labels."""
        if not self._on or not 2 <= len(self._counts) <= self._counts.total() / ROWS_A_LABEL:
            return None
        return tuple(self._counts.most_common(NAMED_LABELS))

    def findings(self) -> Iterator[Finding]:
        """One label for most rows, labels with few rows, labels that differ only in writing."""
        counts = self.counts
        if counts is None:
            return
        label, most = counts[0]
        total = self._counts.total()
        if most > DOMINANT * total:
            yield Finding(
                "balance",
                "warning",
                (),
                f"{most:,} of {total:,} rows ({most / total:.0%}) have the label {label!r}: "
                "always saying it scores as much",
                "Add rows of the other labels, and watch macro F1 rather than accuracy.",
                most,
            )
        rare = sorted(name for name, count in self._counts.items() if count < RARE)
        if rare:
            yield self._about(
                rare,
                f"{len(rare):,} of {len(self._counts):,} labels have fewer than {RARE} rows",
                f"Add rows until each label has {RARE} or more, or merge rare labels.",
            )
        spelling: dict[str, list[str]] = {}
        for name in self._counts:
            key = "".join(c for c in name.casefold() if c.isalnum()) or name
            spelling.setdefault(key, []).append(name)
        twice = [name for names in spelling.values() if len(names) > 1 for name in names]
        if twice:
            yield self._about(
                twice,
                f"{len(twice):,} labels differ from another only in case, spacing or punctuation",
                "Write each label in one way.",
            )

    def _about(self, labels: list[str], message: str, remedy: str) -> Finding:
        shown = ", ".join(repr(label) for label in labels[:5])
        more = f" and {len(labels) - 5:,} more" if len(labels) > 5 else ""
        rows = tuple(row for label in labels for row in self._rows[label])[:20]
        return Finding("balance", "warning", rows, f"{message}: {shown}{more}", remedy, len(labels))
