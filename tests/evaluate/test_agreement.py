from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.evaluate.agreement import krippendorff, win_rate


def rows(*values: str | None) -> dict[str, str]:
    return {str(i): value for i, value in enumerate(values) if value is not None}


def each(n: int) -> dict[str, str]:
    return {str(i): str(i) for i in range(n)}


def test_krippendorffs_own_example_of_two_raters() -> None:
    # Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", A: alpha = 0.095
    a = rows(*"0100000000")
    b = rows(*"1110010100")
    found = krippendorff([a, b], each(10))
    assert found is not None
    assert found.value == pytest.approx(0.095, abs=5e-4)
    assert found.low <= found.value <= found.high


def test_krippendorffs_own_example_of_four_raters_who_left_rows_out() -> None:
    # the same, C: nominal data with missing values, alpha = 0.743
    table = [
        "1  2  3  3  2  1  4  1  2  .  .  .",
        "1  2  3  3  2  2  4  1  2  5  .  3",
        ".  3  3  3  2  3  4  2  2  5  1  .",
        "1  2  3  3  2  4  4  1  2  5  1  .",
    ]
    raters = [rows(*[None if v == "." else v for v in line.split()]) for line in table]
    found = krippendorff(raters, each(12))
    assert found is not None
    assert found.value == pytest.approx(0.743, abs=5e-4)
    # The last row has one rating only.
    assert found.n == 11


def test_agreement_that_cannot_be_told_is_none() -> None:
    assert krippendorff([rows("a", "b")], each(2)) is None
    assert krippendorff([rows("a"), {"7": "a"}], {**each(1), "7": "7"}) is None
    assert krippendorff([rows("a", "a"), rows("a", "a")], each(2)) is None


@given(st.lists(st.sampled_from("abt"), min_size=4, max_size=20))
def test_who_agrees_always_has_1_and_names_do_not_matter(said: list[str]) -> None:
    found = krippendorff([rows(*said)] * 3, each(len(said)))
    assert (found is None) == (len(set(said)) == 1)
    assert found is None or found.value == pytest.approx(1.0)
    other = rows(*[{"a": "b", "b": "t", "t": "a"}[value] for value in said])
    apart = krippendorff([rows(*said), other], each(len(said)))
    assert apart is not None
    assert apart.value < 0


def test_a_tie_is_half_a_win() -> None:
    found = win_rate([1.0, 0.5, 0.5, 0.0, 1.0], list("abcde"))
    assert found is not None
    assert found.value == pytest.approx(0.6)
    assert win_rate([], []) is None
