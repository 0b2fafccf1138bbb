"""What the checks found: findings, the ledger of tokens, and distributions."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

Severity = Literal["error", "warning", "note"]
_ORDER: dict[Severity, int] = {"error": 0, "warning": 1, "note": 2}


@dataclass(frozen=True, slots=True)
class Finding:
    """One observation about the data.

    Args:
        check: the check that made it: form, tokens, duplicates, leakage, privacy, balance, template;
            with models labels, contradictions, outliers, diversity, surprise.
        severity: an error stops a run, because training or its evaluation would be wrong.
        rows: the first twenty rows concerned as FILE:LINE; empty where it concerns all of them.
        message: what was found, with its count.
        remedy: the command or edit that mends it.
        count: how many rows (or pairs, or values) the finding is about.
    """

    check: str
    severity: Severity
    rows: tuple[str, ...]
    message: str
    remedy: str
    count: int


@dataclass(frozen=True, slots=True)
class Ledger:
    """Where the tokens of one pass over all rows go; `dropped_tokens` are of rows refused as too long."""

    trained_tokens: int
    masked_tokens: int
    dropped_tokens: int


@dataclass(frozen=True, slots=True)
class Distribution:
    """Five numbers of a count per row; quantiles are values that occur (nearest rank)."""

    smallest: int
    median: int
    p95: int
    largest: int
    mean: float


def distribution(histogram: Counter[int]) -> Distribution | None:
    """The distribution of a histogram {value: rows}; None where it is empty."""
    total = histogram.total()
    if not total:
        return None
    values = sorted(histogram)

    def quantile(share: float) -> int:
        rest = math.ceil(share * total)
        for value in values:
            rest -= histogram[value]
            if rest <= 0:
                return value
        return values[-1]

    mean = sum(value * rows for value, rows in histogram.items()) / total
    return Distribution(values[0], quantile(0.5), quantile(0.95), values[-1], mean)


@dataclass(frozen=True, slots=True)
class Report:
    """All findings, errors first, and the numbers of the summary table.

    `tokens` is per row (its longest rendering), `answer_tokens` per trained turn with its
    end-of-turn token, `labels` the most frequent answers where answers are labels. What needs a
    tokenizer is None without one.
    """

    findings: tuple[Finding, ...]
    ledger: Ledger | None
    turns: Distribution | None
    tokens: Distribution | None
    answer_tokens: Distribution | None
    labels: tuple[tuple[str, int], ...] | None

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that stop a run."""
        return tuple(finding for finding in self.findings if finding.severity == "error")

    def to_json(self) -> list[dict[str, Any]]:
        """The findings as `check --json` prints them."""
        return [
            {
                "check": finding.check,
                "severity": finding.severity,
                "rows": list(finding.rows),
                "message": finding.message,
                "remedy": finding.remedy,
            }
            for finding in self.findings
        ]


def by_severity(findings: list[Finding]) -> tuple[Finding, ...]:
    """Errors, then warnings, then notes; otherwise as they came."""
    return tuple(sorted(findings, key=lambda finding: _ORDER[finding.severity]))


def rows_said(count: int) -> str:
    """`1 row`, `1,234 rows`."""
    return f"{count:,} row" if count == 1 else f"{count:,} rows"
