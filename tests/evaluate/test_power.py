from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.evaluate import power
from tunesmith.evaluate.statistics import mcnemar_exact, permutation_p


def test_the_rows_for_a_difference_are_those_of_the_formula() -> None:
    # Connor 1987 by hand: q 0.2, d 0.1, (1.95996 * 0.44721 + 0.84162 * 0.43589)^2 / 0.01
    assert power.Spread(40, 0.2).rows_for(0.1) == pytest.approx(154.6, abs=0.1)
    # No two sides can differ by 0.3 that differ on a tenth of the rows: q is 0.3 then.
    assert power.Spread(40, 0.1).rows_for(0.3) == power.Spread(40, 0.3).rows_for(0.3)


@given(st.integers(6, 5000), st.floats(0, 1))
def test_what_can_be_told_takes_the_rows_that_there_are(rows: int, square: float) -> None:
    spread = power.Spread(rows, square)
    found = spread.detectable()
    if found is not None:
        assert spread.rows_for(found) == pytest.approx(rows, rel=1e-3)


@pytest.mark.parametrize(("rows", "square"), [(40, 0.1), (40, 0.3), (100, 0.2), (400, 0.5)])
def test_four_times_of_five_mcnemar_finds_what_can_be_told(rows: int, square: float) -> None:
    found = power.Spread(rows, square).detectable()
    assert found is not None
    either = max(square, found)
    draws = np.random.default_rng(0).choice(
        [1, -1, 0], p=[(either + found) / 2, (either - found) / 2, 1 - either], size=(1500, rows)
    )
    only = zip((draws == 1).sum(axis=1).tolist(), (draws == -1).sum(axis=1).tolist(), strict=True)
    share = np.mean([mcnemar_exact(a, b) < 0.05 for a, b in only])
    # The exact test of whole numbers is a little shy.
    assert 0.72 < share < 0.84


def test_four_times_of_five_flipped_signs_find_what_can_be_told_of_grades_in_clusters() -> None:
    rng = np.random.default_rng(1)
    clusters = [str(row // 3) for row in range(120)]

    def draw(gain: float) -> np.ndarray:
        shared = np.repeat(rng.normal(0, 0.1, 40), 3)
        return gain + shared + rng.normal(0, 0.1, 120)

    squares = [power.measured(draw(0.0).tolist(), clusters).square for _ in range(50)]
    assert np.mean(squares) == pytest.approx(3 * 0.01 + 0.01, rel=0.1)
    found = power.Spread(120, float(np.mean(squares)), whole=False).detectable()
    assert found is not None
    sums = [draw(found).reshape(40, 3).sum(axis=1) for _ in range(60)]
    assert 0.65 < np.mean([permutation_p(x) < 0.05 for x in sums]) < 0.95


def test_rows_that_repeat_a_prompt_tell_less() -> None:
    differences = [1.0, 1.0, 0.0, 0.0, -1.0, -1.0, 0.0, 0.0]
    alone = power.measured(differences, list("abcdefgh"))
    twins = power.measured(differences, list("aabbccdd"))
    assert (alone.square, alone.crowd) == (0.5, 1.0)
    assert (twins.square, twins.crowd) == (1.0, 2.0)
    grades = power.measured([0.75, -0.25], ["a", "b"])
    assert (grades.square, grades.whole) == (0.25, False)


def test_a_sentence_says_what_the_rows_tell_and_how_many_more_would_do() -> None:
    said = power.described(power.Spread(40, 0.08), differ="between tuned and base")
    assert said["detectable"] == pytest.approx(0.185, abs=0.001)
    assert said["sentence"] == (
        "40 test rows tell differences between tuned and base above 0.18 only; "
        "label 50 more to see 0.09."
    )
    assert [wanted["difference"] for wanted in said["wanted"]] == [0.09, 0.1, 0.05]
    assert power.described(power.worst(40))["detectable"] == pytest.approx(0.304, abs=0.001)


def test_too_few_rows_and_equal_grades_tell_nothing_and_say_why() -> None:
    assert power.described(power.worst(5)) == {
        "value": None,
        "reason": "5 test rows tell no difference",
    }
    equal = power.described(power.Spread(40, 0.0, whole=False))
    assert equal["value"] is None
    assert "differ alike" in equal["reason"]


def test_no_difference_on_any_row_is_not_taken_for_certainty() -> None:
    spread = power.measured([0.0] * 40, [str(row) for row in range(40)])
    found = spread.detectable()
    assert found is not None
    assert found == pytest.approx(0.185, abs=0.001)
    assert math.isclose(spread.rows_for(found), 40, rel_tol=1e-3)
