from __future__ import annotations

import json
import statistics
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from tunesmith.checks.report import Distribution, Finding, Report, by_severity, distribution


def finding(severity: str, check: str = "form") -> Finding:
    return Finding(check, severity, ("a.jsonl:1",), "1 row", "Mend it.", 1)  # type: ignore[arg-type]


def test_a_distribution_worked_by_hand() -> None:
    histogram = Counter({1: 10, 2: 8, 100: 2})
    assert distribution(histogram) == Distribution(1, 1, 100, 100, 11.3)
    assert distribution(Counter()) is None


@given(st.lists(st.integers(0, 50), min_size=1))
def test_quantiles_are_nearest_ranks(values: list[int]) -> None:
    found = distribution(Counter(values))
    assert found is not None
    assert found.median == statistics.median_low(values)
    assert found.p95 == sorted(values)[-(-95 * len(values) // 100) - 1]
    assert (found.smallest, found.largest) == (min(values), max(values))


def test_errors_come_first_and_json_is_as_the_contract_says() -> None:
    ordered = by_severity([finding("note"), finding("error"), finding("warning")])
    report = Report(ordered, None, None, None, None, None)
    assert [one.severity for one in report.errors] == ["error"]
    listed = json.loads(json.dumps(report.to_json()))
    assert [one["severity"] for one in listed] == ["error", "warning", "note"]
    assert set(listed[0]) == {"check", "severity", "rows", "message", "remedy"}
    assert listed[0]["rows"] == ["a.jsonl:1"]
