from __future__ import annotations

import math
from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith import cost
from tunesmith.cost import Amount, Work
from tunesmith.prices import GpuPrice, TokenPrice

DATED: dict[str, Any] = {"as_of": "2026-11", "confidence": "high", "source": "made up"}
WORK = Work(
    tokens=1_000_000,
    validation_tokens=100_000,
    epochs=3,
    distinct=2_000_000,
    parameters=1_000_000_000,
    learned=10_000_000,
    full=False,
)


def dry_run(points: list[tuple[float, float]], **changes: Any) -> dict[str, Any]:
    plan = {"steps": 100, "tokens": 100 * 1500, "validations": 13}
    return {
        "startup": {"seconds": 8.0, "cpu_seconds": 6.0},
        "ending": {"seconds": 2.0, "cpu_seconds": 3.0},
        "validation": {"seconds": 1.0, "cpu_seconds": 2.0},
        "steps": [{"tokens": x, "seconds": y / 2, "cpu_seconds": y} for x, y in points],
        "schedule": {**plan, **changes},
    }


LINE = [(x, 0.5 + 0.002 * x) for x in (1000.0, 1200.0, 1500.0, 1700.0, 1800.0, 2000.0)]


def test_steps_on_a_line_are_forecast_exactly() -> None:
    # 6 + 3 + 13 * 2 + 100 * (0.5 + 0.002 * 1500) = 385 CPU seconds.
    found = cost.forecast(dry_run(LINE), "cpu_seconds")
    assert found.value == pytest.approx(385)
    assert found.low == pytest.approx(385 * (1 - cost.DRIFT))
    assert found.high == pytest.approx(385 * (1 + cost.DRIFT))
    # 8 + 2 + 13 * 1 + 100 * 1.75 = 198 seconds.
    assert cost.forecast(dry_run(LINE), "seconds").value == pytest.approx(198)


def test_steps_off_the_line_widen_the_interval() -> None:
    off = [(x, y * (1.2 if n % 2 else 0.8)) for n, (x, y) in enumerate(LINE)]
    straight, wide = (cost.forecast(dry_run(points), "cpu_seconds") for points in (LINE, off))
    assert wide.high - wide.low > 1.5 * (straight.high - straight.low)


def test_a_line_that_falls_or_begins_below_zero_goes_through_the_origin() -> None:
    for points in ([(100.0, 2.0), (300.0, 1.0)], [(100.0, 1.0), (200.0, 4.0), (300.0, 7.0)]):
        total, _ = cost.line_sum(points, 10, 200.0)
        share = sum(y for _, y in points) / sum(x for x, _ in points)
        assert total == pytest.approx(10 * 200 * share)


def test_steps_of_one_size_are_forecast_by_their_mean() -> None:
    total, half = cost.line_sum([(100.0, 1.0), (100.0, 3.0)], 50, 100.0)
    assert total == pytest.approx(100)
    # t of one degree of freedom is 12.71; s^2 = 2, times 50^2 / 2 + 50.
    assert half == pytest.approx(12.7062 * math.sqrt(2 * (50**2 / 2 + 50)), rel=1e-4)
    assert cost.line_sum([(100.0, 1.0)], 5, 100.0) == (5.0, math.inf)


@given(st.floats(0, 5), st.floats(1e-5, 1e-2), st.integers(1, 500), st.floats(10, 5000))
def test_a_longer_run_is_never_forecast_to_be_shorter(
    start: float, slope: float, steps: int, mean: float
) -> None:
    points = [(x, start + slope * x) for x in (500.0, 900.0, 1300.0, 2100.0)]
    one, _ = cost.line_sum(points, steps, mean)
    assert cost.line_sum(points, steps + 1, mean)[0] >= one
    assert cost.line_sum(points, steps, mean + 100)[0] >= one


def test_a_run_that_stopped_early_is_held_against_its_own_steps() -> None:
    spent = [{"seconds": 50.0, "cpu_seconds": 100.0}, {"seconds": 60.0, "cpu_seconds": 111.0}]
    found = cost.checked({"dry_run": dry_run(LINE)}, spent, 50, 7)
    # Started twice: 2 * 6 + 3 + 7 * 2 + 50 * 3.5 = 204 CPU seconds.
    assert found["forecast"]["cpu_seconds"]["value"] == pytest.approx(204)
    assert found["actual"] == {"cpu_seconds": 211.0, "seconds": 110.0}
    assert found["ratio"]["cpu_seconds"] == pytest.approx(211 / 204)
    assert (found["steps"], found["planned_steps"]) == (50, 100)


def test_what_is_added_to_something_unknown_is_unknown() -> None:
    known, unknown = Amount.known(2, 1, 3), Amount.unknown("nobody said")
    assert known + known == Amount(4, 2, 6)
    assert known * known == Amount(4, 1, 9)
    for found in (known + unknown, unknown + known, known * unknown, unknown * known):
        assert found == unknown
    assert unknown.to_json() == {"value": None, "reason": "nobody said"}
    for amount in (known, unknown, Amount(1, 0, math.inf)):
        assert Amount.of(amount.to_json()) == amount
    assert Amount(1, 0, math.inf).to_json()["high"] is None
    assert cost.minutes(Amount(600, 540, 720)) == "10 min (9 to 12)"
    assert cost.minutes(Amount(60, 50, 70)) == "60 s (50 to 70)"


def test_training_here_costs_hours_times_what_an_hour_costs() -> None:
    way = cost.here(Amount.known(7200, 3600, 10800), 0.3)
    assert way.usd == Amount(pytest.approx(0.6), pytest.approx(0.3), pytest.approx(0.9))
    assert cost.here(Amount.known(7200), None).usd.to_json()["value"] is None


def test_rented_hours_are_operations_over_the_share_of_the_peak() -> None:
    row = GpuPrice(provider="p", gpu="g", tier="t", memory_gb=80, tflops=100, per_hour=2.0, **DATED)
    # (4 * 1e9 + 2 * 1e7) * 2e6 operations at a quarter of 1e14 a second: 321.6 s, and 0.2 h of setup.
    way = cost.rented(WORK, row)
    assert WORK.flops == pytest.approx(8.04e15)
    assert way.hours.value == pytest.approx(321.6 / 3600 + 0.2)
    assert way.hours.low == pytest.approx(8.04e15 / 4.5e13 / 3600 + 0.1)
    assert way.hours.high == pytest.approx(8.04e15 / 1e13 / 3600 + 0.5)
    assert way.usd.value == pytest.approx(2 * (321.6 / 3600 + 0.2))
    unpriced = cost.rented(WORK, row.model_copy(update={"per_hour": None}))
    assert unpriced.usd.value is None
    assert unpriced.hours == way.hours
    assert WORK.memory_gb == pytest.approx(2 + 0.16 + 2)


def test_a_provider_takes_tokens_times_epochs_times_rate_and_no_less_than_its_minimum() -> None:
    row = TokenPrice(provider="p", model="m", train=0.5, **DATED)
    assert cost.hosted(WORK, row).usd == Amount(
        pytest.approx(1.5), pytest.approx(1.2), pytest.approx(1.875)
    )
    held = row.model_copy(update={"counts_validation": True})
    assert cost.hosted(WORK, held).usd.value == pytest.approx(1.65)
    ranged = row.model_copy(update={"train_high": 2.0})
    assert cost.hosted(WORK, ranged).usd.high == pytest.approx(7.5)
    least = row.model_copy(update={"minimum": 4.0})
    assert cost.hosted(WORK, least).usd == Amount(4.0, 4.0, 4.0)
    unknown = row.model_copy(update={"train": None, "ends": date(2027, 1, 14)})
    assert cost.hosted(WORK, unknown).usd.value is None
    assert cost.hosted(WORK, unknown).notes == ("ends on 2027-01-14",)


@given(st.integers(1, 10**7), st.integers(1, 10**7), st.floats(0.01, 30), st.floats(0.01, 30))
def test_more_rows_or_a_higher_price_never_cost_less(
    less: int, more: int, low: float, high: float
) -> None:
    less, more = sorted((less, more))
    low, high = sorted((low, high))

    def usd(tokens: int, rate: float) -> float:
        work = Work(tokens, 0, 3, tokens, 10**8, 10**6, False)
        found = cost.hosted(work, TokenPrice(provider="p", model="m", train=rate, **DATED)).usd
        assert found.value is not None
        assert found.low <= found.value <= found.high
        return found.value

    assert usd(less, low) <= usd(more, low) <= usd(more, high)


def test_a_mean_has_students_interval() -> None:
    # s = 1, n = 3, t of 2 degrees of freedom is 4.3027.
    found = cost.mean([1.0, 2.0, 3.0])
    assert found.value == 2.0
    assert found.high == pytest.approx(2 + 4.3027 / math.sqrt(3), rel=1e-4)
    assert found.low == 0.0
    assert cost.mean([5.0]).to_json()["high"] is None
    assert cost.mean([]).value is None


def test_a_thousand_calls_cost_their_tokens() -> None:
    row = TokenPrice(provider="p", model="m", input=2.0, output=10.0, **DATED)
    # 500 in and 50 out: 0.001 + 0.0005 US$ a call.
    found = cost.per_1000(Amount.known(500, 400, 600), Amount.known(50), row)
    assert found == Amount(pytest.approx(1.5), pytest.approx(1.3), pytest.approx(1.7))
    half = row.model_copy(update={"output": None})
    assert cost.per_1000(Amount.known(500), Amount.known(50), half).value is None


def test_a_thousand_calls_here_take_their_share_of_an_hour() -> None:
    # 64 at once, 3.2 s each: 20 a second, 1,000 in 50 s of an hour that costs 0.72.
    found = cost.per_1000_here(Amount.known(3.2), 64, 0.72)
    assert found.value == pytest.approx(0.01)
    assert cost.per_1000_here(Amount.known(3.2), 64, None).value is None


def test_the_break_even_counts_training_and_hosting() -> None:
    # A month: 12 / 12 + 12 * 1 for monthly training, and 60 for hosting.
    fixed = cost.upkeep(Amount.known(12), Amount.known(60), "monthly")
    assert fixed.value == pytest.approx(73)
    assert cost.upkeep(Amount.known(12), Amount.known(60), "unknown").value == pytest.approx(61)
    # 73 US$ over a cent less a call.
    found = cost.break_even(fixed, Amount.known(2), Amount.known(12))
    assert found.value == pytest.approx(7300)
    ranged = cost.break_even(fixed, Amount.known(2, 1, 3), Amount.known(12, 8, 16))
    assert (ranged.low, ranged.high) == (pytest.approx(73000 / 15), pytest.approx(14600))
    assert cost.break_even(fixed, Amount.known(2, 1, 9), Amount.known(12, 8, 16)).high == math.inf
    assert "costs no less" in cost.break_even(fixed, Amount.known(12), Amount.known(2)).reason
    assert cost.break_even(Amount.unknown("why"), Amount.known(1), Amount.known(2)).reason == "why"
