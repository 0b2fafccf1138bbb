from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.evaluate import curve
from tunesmith.evaluate.curve import Point

ROWS = {"quarter": 200, "half": 400, "all": 800}


def points(score: Callable[[int], float], seeds: int = 2) -> tuple[list[Point], list[str]]:
    """Points that lie on a curve: each of 10 rows has that score in each training."""
    made = [
        Point(seed, share, rows, (score(rows),) * 10)
        for seed in range(seeds)
        for share, rows in ROWS.items()
    ]
    return made, [str(row) for row in range(10)]


def test_on_a_logarithm_each_doubling_brings_the_same() -> None:
    found = curve.fit(*points(lambda n: 0.5 + 0.05 * math.log2(n / 800)))
    assert found.exponent[0] == 0
    assert found.level[0] == pytest.approx(0.5)
    assert found.gain(2)[0] == pytest.approx(0.05)
    assert found.rows_for(0.6)[0] == pytest.approx(3200)
    # Nothing varies, so neither does the forecast.
    assert np.ptp(found.gain(2)) == pytest.approx(0, abs=1e-9)


def test_on_a_power_law_the_forecast_is_that_of_the_law() -> None:
    def law(rows: int) -> float:
        return 1 - (0.1 + 0.2 * (rows / 800) ** -0.5)

    found = curve.fit(*points(law))
    assert found.exponent[0] == pytest.approx(0.5)
    assert found.gain(2)[0] == pytest.approx(law(1600) - law(800))
    assert found.rows_for(0.75)[0] == pytest.approx(800 * (0.2 / 0.15) ** 2)
    # The law ends at 0.9.
    assert found.rows_for(0.9)[0] > 1e30


def test_a_gain_ends_at_the_highest_score() -> None:
    found = curve.fit(*points(lambda n: 0.95 + 0.2 * math.log2(n / 800)))
    assert found.gain(2)[0] == pytest.approx(0.05)


def test_a_flat_curve_brings_nothing_and_reaches_no_goal() -> None:
    made = curve.described(*points(lambda n: 0.5), metric="exact", goal=0.8)
    assert made["doubling"]["value"] == 0
    assert made["doubling"]["sentence"].startswith("Twice the rows would bring nothing that shows")
    assert made["rows_for_goal"]["value"] is None
    assert "more than 6,400 rows, or something else" in made["rows_for_goal"]["reason"]
    assert [(p["rows"], p["seed"], p["value"]) for p in made["curve"][:3]] == [
        (200, 0, 0.5),
        (200, 1, 0.5),
        (400, 0, 0.5),
    ]


def noisy(tau: float, seed: int, rows: int = 100) -> tuple[list[Point], list[str]]:
    """Yes-or-no scores on one set of rows, and trainings that vary; 1 - 0.05 - 0.2 (n/800)^-0.35."""
    rng = np.random.default_rng(seed)
    hardness, made = rng.random(rows), list[Point]()
    for number in range(2):
        for share, size in ROWS.items():
            right = 0.95 - 0.2 * (size / 800) ** -0.35 + tau * rng.standard_normal()
            luck = np.where(rng.random(rows) < 0.7, hardness, rng.random(rows))
            made.append(Point(number, share, size, tuple((luck < right).astype(float).tolist())))
    return made, [str(row) for row in range(rows)]


def test_intervals_cover_what_twice_the_rows_would_bring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curve, "DRAWS", 500)
    truth, hits = 0.2 * (1 - 2**-0.35), 0
    for seed in range(60):
        doubling = curve.described(*noisy(0.02, seed), metric="exact", goal=None)["doubling"]
        assert doubling["low"] <= doubling["value"] <= doubling["high"]
        hits += doubling["low"] <= truth <= doubling["high"]
    assert hits >= 54


def test_what_is_described_is_drawn() -> None:
    made = curve.described(*noisy(0.02, 1), metric="exact", goal=0.9)
    assert made["doubling"]["expected"]["low"] < made["doubling"]["expected"]["value"] < 1
    drawn = str(curve.drawing(made))
    assert drawn.count("<circle") == 7
    assert "forecast for 1,600 rows" in drawn
    assert curve.drawing({"curve": {"value": None, "reason": "left out"}}) is None


def test_rows_that_all_fail_are_not_taken_for_certainty() -> None:
    doubling = curve.described(*points(lambda n: 0.0), metric="exact", goal=None)["doubling"]
    assert doubling["value"] == 0
    assert -0.25 < doubling["low"] < -0.05 < 0.05 < doubling["high"] < 0.25


def test_what_cannot_be_told_is_said_so() -> None:
    made = curve.described(*noisy(0.05, 3, rows=20), metric="exact", goal=0.85)
    assert made["doubling"]["sentence"].startswith("Whether twice the rows would help cannot be")
    assert made["rows_for_goal"].get("value") is None or made["rows_for_goal"]["high"] is None


def test_a_goal_that_is_reached_or_near_has_its_rows() -> None:
    straight = points(lambda n: 0.5 + 0.05 * math.log2(n / 800))
    near = curve.described(*straight, metric="exact", goal=0.55)["rows_for_goal"]
    assert near["value"] == pytest.approx(1600, abs=1)
    assert near["sentence"] == "exact 0.55 needs about 1,600 rows (1,600 to 1,600)."
    reached = curve.described(*straight, metric="exact", goal=0.4)["rows_for_goal"]
    assert "800 rows are enough" in reached["sentence"]
    none = curve.described(*straight, metric="exact", goal=None)["rows_for_goal"]
    assert none == {"value": None, "reason": "no evaluate.goal was given"}


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 30)), min_size=4), st.integers(0))
def test_parts_are_nested_and_leave_groups_whole(rows: list[tuple[str, int]], seed: int) -> None:
    strata, groups = [row[0] for row in rows], [row[1] for row in rows]
    quarter, half, whole = curve.nested(strata, groups, (0.25, 0.5, 1.0), seed % 2**32)
    assert set(quarter) <= set(half) <= set(whole) == set(range(len(rows)))
    for part in (quarter, half):
        inside = {groups[index] for index in part}
        assert {i for i, group in enumerate(groups) if group in inside} == set(part)
    assert curve.nested(strata, groups, (0.25,), seed % 2**32) == [quarter]


def test_labels_keep_their_shares_and_another_seed_picks_others() -> None:
    strata = ["common"] * 80 + ["rare"] * 16 + ["once"] * 4
    quarter, half = curve.nested(strata, range(100), (0.25, 0.5), 0)
    for part, times in ((quarter, 1), (half, 2)):
        assert abs(len(part) - 25 * times) <= 1
        counts = Counter(strata[index] for index in part)
        assert all(
            abs(counts[name] - times * size) <= 1
            for name, size in (("common", 20), ("rare", 4), ("once", 1))
        )
    assert curve.nested(strata, range(100), (0.25,), 1) != [quarter]
