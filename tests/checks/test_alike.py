from __future__ import annotations

import numpy as np
import pytest

from tunesmith.checks import alike
from tunesmith.checks.alike import Near
from tunesmith.data.likeness import Vectors


def around(rows: int, spread: float, seed: int = 0, width: int = 16) -> Vectors:
    """Rows around one direction."""
    vectors = np.random.default_rng(seed).normal(size=(rows, width)) * spread
    vectors[:, 0] += 1
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def names(count: int) -> list[str]:
    return [f"rows.jsonl:{line}" for line in range(1, count + 1)]


def test_rows_far_from_all_others_are_named_with_their_distance_and_no_others() -> None:
    vectors = around(100, 0.2)
    vectors[[7, 41]] = np.eye(16, dtype=np.float32)[[5, 9]]
    found = alike.outliers(Near.of(vectors, [""] * 100), names(100), ["a prompt"] * 100)
    assert [suspect.row for suspect in found] == ["rows.jsonl:8", "rows.jsonl:42"]
    assert found[0].why.startswith("'a prompt' (distance ")
    assert alike.outliers(Near.of(vectors[:29], [""] * 29), names(29), [""] * 29) == []


def test_one_question_in_other_words_with_another_answer_is_a_contradiction() -> None:
    vectors = np.eye(4, dtype=np.float32)[[0, 0, 1, 1, 2]]
    answers = ["yes", "no", "yes", " yes ", "no"]
    found = alike.contradictions(Near.of(vectors, [""] * 5), names(5), answers, None)
    assert [suspect.place for suspect in found] == [0, 1]
    assert found[0].why == "answers 'yes' where rows.jsonl:2 answers 'no'"
    alike_said = np.ones((5, 1), np.float32)
    assert alike.contradictions(Near.of(vectors, [""] * 5), names(5), answers, alike_said) == []


def test_another_system_message_may_ask_for_another_answer() -> None:
    vectors = np.eye(2, dtype=np.float32)[[0, 0]]
    near = Near.of(vectors, ["formal", "funny"])
    assert alike.contradictions(near, names(2), ["Good day.", "Yo!"], None) == []
    assert "0 rows (0%) ask nearly" in next(alike.diversity(vectors, near, names(2))).message


@pytest.mark.parametrize(("kinds", "expected"), [(1, 1.0), (2, 2.0), (8, 8.0)])
def test_the_vendi_score_counts_kinds_that_are_equally_frequent(
    kinds: int, expected: float
) -> None:
    vectors = np.eye(8, dtype=np.float32)[np.arange(24) % kinds]
    assert alike.vendi_score(vectors) == pytest.approx(expected)


def test_many_rows_that_ask_nearly_the_same_are_a_warning_with_a_way_out() -> None:
    crowded = around(60, 0.01)
    finding = next(alike.diversity(crowded, Near.of(crowded, [""] * 60), names(60)))
    assert (finding.severity, finding.count) == ("warning", 60)
    assert "--select" in finding.remedy
    spread = np.eye(60, dtype=np.float32)
    finding = next(alike.diversity(spread, Near.of(spread, [""] * 60), names(60)))
    assert (finding.severity, finding.count, finding.rows) == ("note", 0, ())
    assert "as diverse as 60 rows" in finding.message
    assert list(alike.diversity(spread[:1], Near.of(spread[:1], [""]), names(1))) == []
