from __future__ import annotations

from tunesmith.checks.suspects import Suspect, shortened, told


def test_the_worst_rows_come_first_and_three_are_explained() -> None:
    suspects = [Suspect(n, f"f:{n}", "labels", n / 10, f"is odd {n}") for n in range(5)]
    (finding,) = told(suspects, "warning", "are odd", "Mend them.")
    assert finding.rows == ("f:4", "f:3", "f:2", "f:1", "f:0")
    assert finding.message == "5 rows are odd: f:4 is odd 4; f:3 is odd 3; f:2 is odd 2"
    assert (finding.check, finding.count) == ("labels", 5)
    assert told([], "warning", "are odd", "Mend them.") == ()


def test_a_long_text_is_cut_on_one_line() -> None:
    assert shortened("a\n b") == "'a b'"
    assert shortened("x" * 80) == repr("x" * 60 + "…")
