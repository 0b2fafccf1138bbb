from __future__ import annotations

import pytest

from tunesmith.api import limits
from tunesmith.api.limits import Rates
from tunesmith.serve.wire import Refusal


def test_a_bucket_holds_a_minutes_requests_and_fills_by_the_second() -> None:
    now = 0.0
    rates = Rates(60, clock=lambda: now)
    for left in range(59, -1, -1):
        assert rates.spend("a").left == left
    with pytest.raises(Refusal) as refused:
        rates.spend("a")
    assert refused.value.headers == {"retry-after": "1"}
    now = 2.5
    assert rates.spend("a").left == 1.5
    assert rates.spend("b").left == 59
    now = 1000.0
    assert rates.spend("a").left == 59


def test_the_names_that_asked_longest_ago_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "REMEMBERED", 2)
    rates = Rates(2, clock=lambda: 0.0)
    for name in ("a", "b", "a", "c"):
        rates.spend(name)
    with pytest.raises(Refusal):
        rates.spend("a")
    assert rates.spend("b").left == 1
