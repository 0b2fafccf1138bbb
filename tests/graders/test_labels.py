from __future__ import annotations

import numpy as np
import pytest

from tunesmith.graders.labels import LABELS, normal

F1 = LABELS.corpus[0]


def macro_f1(outputs: list[str], references: list[str]) -> float:
    return float(F1.value(F1.counts(outputs, references).sum(0)[None])[0])


@pytest.mark.parametrize("text", ["refund", " refund\n", '"refund"', "'refund'.", "“refund.”"])
def test_quotes_spaces_and_full_stops_around_a_label_are_forgiven(text: str) -> None:
    assert normal(text) == "refund"
    assert LABELS.grade(text, "refund") == {"exact": 1.0}


@pytest.mark.parametrize("text", ["Refund", "refund please", "", "refun"])
def test_anything_else_is_another_label(text: str) -> None:
    assert LABELS.grade(text, "refund") == {"exact": 0.0}


def test_macro_f1_by_hand() -> None:
    # a: 2 hits, 2 predicted, 3 wanted = 4/5; b: 1 hit, 2 predicted, 1 wanted = 2/3;
    # c is never predicted = 0; "x" is no label and only costs the row it stands in.
    outputs = ["a", "a", "b", "b", "x"]
    references = ["a", "a", "a", "b", "c"]
    assert macro_f1(outputs, references) == pytest.approx((4 / 5 + 2 / 3 + 0) / 3)


def test_macro_f1_leaves_out_labels_that_a_resampling_does_not_hold() -> None:
    counts = F1.counts(["a", "b"], ["a", "b"])
    np.testing.assert_allclose(F1.value(counts[:1]), [1.0])
