from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.evaluate import charts

NUMBERS = st.floats(-1e6, 1e6, allow_nan=False)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2000, "2,000"),
        (0.8125, "0.812"),
        (-0.0123, "−0.0123"),
        (999.7, "1,000"),
        (100.0, "100"),
        (float("nan"), "nan"),
        (True, "yes"),
        ("plain", "plain"),
    ],
)
def test_numbers_have_three_digits_and_counts_are_whole(value: object, text: str) -> None:
    assert charts.number(value) == text


def test_a_sign_is_written_when_it_is_asked_for() -> None:
    assert [charts.number(v, True) for v in (0.5, -0.5, 0)] == ["+0.500", "−0.500", "0"]


def test_ticks_are_round() -> None:
    assert charts.ticks(0.02, 0.85) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert charts.ticks(0, 221) == [0, 50, 100, 150, 200, 250]


@given(NUMBERS, st.floats(0, 1e6))
def test_ticks_enclose_what_is_drawn(low: float, width: float) -> None:
    marks = charts.ticks(low, low + width)
    slack = 1e-6 * max(1.0, marks[-1] - marks[0])
    assert marks[0] <= low + slack
    assert low + width <= marks[-1] + slack
    assert 2 <= len(marks) <= 8


def test_a_forest_is_well_formed_and_every_mark_lies_on_the_axis() -> None:
    lines = [
        charts.Interval("base", 0.02, 0.0, 0.06),
        charts.Interval('"><script>', 0.8, 0.76, 0.85, strong=True),
    ]
    drawn = ElementTree.fromstring(charts.forest("exact", lines, reference=0.0))
    at = [float(dot.attrib["cx"].rstrip("%")) for dot in drawn.iter("circle")]
    assert at == [2.0, 80.0]
    assert not list(drawn.iter("script"))
    assert "base 0.0200 (0.00 to 0.0600)" in drawn.attrib["aria-label"]


def test_curves_mark_the_best_step_and_say_their_ends() -> None:
    train = [(float(step), 4.0 / step) for step in range(1, 101)]
    drawn = ElementTree.fromstring(charts.curves(train, [(0, 4.5), (50, 0.5), (100, 0.4)], 50))
    texts = [text.text for text in drawn.iter("text")]
    assert "best: step 50" in texts
    assert len(list(drawn.iter("circle"))) == 3
    label = drawn.findall("svg")[1].attrib["aria-label"]
    assert "validation loss from 4.50 at step 0 to 0.400 at step 100" in label


@pytest.mark.parametrize("validation", [[], [(0.0, 1.0)]])
def test_curves_of_one_point_are_drawn(validation: list[charts.Point]) -> None:
    assert "NaN" not in charts.curves([(1, 1.0)], validation, None)


def test_many_steps_are_thinned_and_the_last_one_is_kept() -> None:
    drawn = charts.curves([(float(step), 1.0) for step in range(100_000)], [], None)
    longest = max(re.findall(r'points="([^"]*)"', drawn), key=len).split()
    assert len(longest) <= charts.MOST_POINTS + 2
    assert len(drawn) < 50_000


def test_smoothing_does_not_lag_behind_a_straight_line() -> None:
    line = [(float(step), 3.0 - 0.01 * step) for step in range(200)]
    assert charts.smooth(line) == [(step, pytest.approx(loss)) for step, loss in line]


def test_a_learning_curve_shows_each_training_the_forecast_and_the_goal() -> None:
    points = [
        charts.Scored(rows, value, value - 0.05, value + 0.05)
        for rows, value in ((200, 0.4), (200, 0.44), (400, 0.5), (800, 0.58))
    ]
    forecast = charts.Scored(1600, 0.62, 0.55, 0.7)
    page = charts.learning(points, forecast, 0.65, "exact")
    drawn = ElementTree.fromstring(page).findall("svg")[1]
    dots = [(dot.attrib["class"], float(dot.attrib["cx"][:-1])) for dot in drawn.iter("circle")]
    assert [name for name, _ in dots] == ["dot"] * 4 + ["validation"]
    # Two of one size stand beside each other; each doubling is as wide as the next.
    at = [(dots[0][1] + dots[1][1]) / 2, *(place for _, place in dots[2:])]
    assert at == pytest.approx([8, 36, 64, 92])
    names = [line.attrib["class"] for line in drawn.iter("line")]
    assert [names.count(name) for name in ("curve", "best", "reference", "span")] == [2, 1, 1, 5]
    assert [text.text for text in drawn.iter("text")] == ["200", "400", "800", "1,600"]
    assert drawn.attrib["aria-label"].startswith("exact by training rows: 200 rows 0.400 (0.350")
    assert "forecast for 1,600 rows 0.620 (0.550 to 0.700)" in drawn.attrib["aria-label"]


def test_a_learning_curve_without_forecast_and_goal_is_drawn() -> None:
    drawn = charts.learning([charts.Scored(100, 0.5, 0.5, 0.5)], None, None, "exact")
    assert "nan" not in drawn.lower()
    assert ElementTree.fromstring(drawn) is not None


def test_a_trade_off_has_a_dot_and_a_label_for_each_spot() -> None:
    spots = [("0", 0.0, 0.2), ("0.5", 0.1, 0.7), ("1", 0.4, 0.8)]
    drawn = ElementTree.fromstring(charts.tradeoff("exact", spots))
    assert len(drawn.findall(".//circle")) == 3
    assert len(drawn.findall(".//line[@class='span']")) == 2
    assert {"0", "0.5", "1"} <= {text.text for text in drawn.findall(".//text")}
    ElementTree.fromstring(charts.tradeoff("exact", spots[:1]))
