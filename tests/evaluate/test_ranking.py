from __future__ import annotations

from typing import Any

import pytest

from tunesmith.evaluate.ranking import Shown, in_force, majority, preferred, summary, to_rate

ARMS = ("tuned", "base")


def rating(
    rater: str, row: str, choice: str | None, arms: tuple[str, ...] = ARMS
) -> dict[str, Any]:
    said = {"undo": True} if choice is None else {"choice": choice}
    return {"at": "", "rater": rater, "id": row, "arms": list(arms), **said}


def samples(n: int) -> dict[str, list[dict[str, str]]]:
    return {arm: [{"id": str(i), "prompt": f"q{i}", "output": f"{arm} {i}"} for i in range(n)]
            for arm in ARMS}  # fmt: skip


def test_the_order_is_random_recorded_and_each_raters_own() -> None:
    ann, again, ben = (to_rate(samples(200), ARMS, name, "seed") for name in ("ann", "ann", "ben"))
    assert ann == again != ben
    assert [row.id for row in ann] == [row.id for row in ben]
    for row in ann:
        assert row.answers == tuple(f"{arm} {row.id}" for arm in row.arms)
    first = sum(row.arms[0] == "tuned" for row in ann)
    assert 70 < first < 130


def test_rows_with_equal_answers_or_without_one_are_not_shown() -> None:
    given = samples(3)
    given["base"][0]["output"] = "tuned 0 "
    del given["base"][1]
    assert [row.id for row in to_rate(given, ARMS, "ann", "seed")] == ["2"]


def test_the_last_word_counts_and_can_be_taken_back() -> None:
    said = [rating("ann", "1", "1"), rating("ann", "2", "2"), rating("ann", "1", "tie"),
            rating("ben", "1", "1"), rating("ben", "1", None)]  # fmt: skip
    found = in_force(said)
    assert list(found["ann"]) == ["2", "1"]
    assert found["ann"]["1"]["choice"] == "tie"
    assert found["ben"] == {}


@pytest.mark.parametrize(
    ("choice", "best"), [("1", "base"), ("2", "tuned"), ("tie", "tie"), ("skip", None)]
)
def test_a_choice_is_of_the_arm_that_stood_there(choice: str, best: str | None) -> None:
    assert preferred(rating("ann", "1", choice, ("base", "tuned"))) == best


def test_results_by_hand() -> None:
    said = [
        rating("ann", "1", "1"),
        rating("ann", "2", "2", ("base", "tuned")),
        rating("ann", "3", "tie"),
        rating("ann", "4", "skip"),
        rating("ben", "1", "1"),
        rating("ben", "2", "1", ("base", "tuned")),
        rating("ben", "3", "tie"),
    ]
    found = summary(said, {str(i): str(i) for i in range(9)})
    assert found["raters"] == {"ann": 3, "ben": 3}
    assert found["skipped"] == 1
    (pair,) = found["pairs"]
    assert (pair["a"], pair["b"]) == ("tuned", "base")
    assert (pair["wins"], pair["ties"], pair["losses"]) == (3, 2, 1)
    assert pair["win_rate"]["value"] == pytest.approx(4 / 6)
    # tuned, tuned | tuned, base | tie, tie: 1 - 5 * 2 / (36 - 9 - 1 - 4)
    assert found["agreement"]["value"] == pytest.approx(1 - 5 * 2 / (36 - 9 - 1 - 4))
    assert found["with_judge"]["value"] is None


def test_the_judge_is_held_against_the_majority() -> None:
    said = [rating(name, row, "1") for name in ("ann", "ben") for row in "123"]
    said += [rating("cid", "1", "2"), *(rating("ann", row, "2") for row in "456")]
    clusters = {str(i): str(i) for i in range(9)}
    judged = {**dict.fromkeys("123", "tuned"), **dict.fromkeys("456", "base")}
    found = summary(said, clusters, judged)
    assert found["with_judge"]["value"] == pytest.approx(1.0)
    assert found["with_judge"]["n"] == 6


def test_a_majority_needs_more_votes_than_any_other() -> None:
    said = {"ann": {"1": "tuned", "2": "tuned"}, "ben": {"1": "base", "2": "tuned"},
            "cid": {"2": "base"}}  # fmt: skip
    assert majority(said) == {"1": "tie", "2": "tuned"}


def test_of_three_answers_the_best_has_won_against_each_other() -> None:
    three = ("tuned", "prompt", "base")
    said = [rating("ann", "1", "1", three), rating("ann", "2", "2", three)]
    found = {(p["a"], p["b"]): p for p in summary(said, {"1": "1", "2": "2"})["pairs"]}
    assert set(found) == {("tuned", "prompt"), ("tuned", "base"), ("prompt", "base")}
    counts = {key: (p["wins"], p["ties"], p["losses"]) for key, p in found.items()}
    assert counts == {("tuned", "prompt"): (1, 0, 1), ("tuned", "base"): (1, 0, 0),
                      ("prompt", "base"): (1, 0, 0)}  # fmt: skip


def test_without_ratings_there_are_reasons() -> None:
    skipped = summary([rating("ann", "1", "skip")], {"1": "1"})
    assert skipped["raters"] == {}
    assert skipped["pairs"][0]["win_rate"]["value"] is None
    assert skipped["agreement"]["value"] is None
    assert summary([], {})["pairs"] == []


def test_what_is_shown_has_no_names() -> None:
    assert not {"reference", "scores", "arm"} & set(Shown.__dataclass_fields__)
