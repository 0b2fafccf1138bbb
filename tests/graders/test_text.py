from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.graders.text import TEXT, chrf, edit_similarity, edits, length_ratio, rouge_l

WORDS = st.lists(st.sampled_from("abcd"), max_size=9)


def plain_edits(a: list[str], b: list[str]) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1]


@given(WORDS, WORDS)
def test_edits_are_those_of_the_textbook_table(a: list[str], b: list[str]) -> None:
    assert edits(a, b) == plain_edits(a, b)


def test_edits_of_kitten_and_sitting_are_three() -> None:
    assert edits("kitten", "sitting") == 3


def test_edits_hold_for_texts_longer_than_a_machine_word() -> None:
    a = [str(i) for i in range(300)]
    assert edits(a, [*a[:100], "new", *a[101:250]]) == 51


@given(st.text(max_size=40), st.text(max_size=40))
def test_every_likeness_is_between_0_and_1(output: str, reference: str) -> None:
    scores = dict(TEXT.grade(output, reference))
    assert scores.pop("length_ratio") >= 0
    assert all(0 <= value <= 1 for value in scores.values())


@given(st.text(max_size=40))
def test_the_reference_itself_scores_one(text: str) -> None:
    scores = dict(TEXT.grade(text, text))
    assert scores.pop("length_ratio") == (1 if text.strip() else 0)
    assert set(scores.values()) == {1.0}


def test_rouge_l_by_hand() -> None:
    # longest common subsequence "the cat mat" = 3 of 4 and of 6 words: 2*3/(4+6)
    assert rouge_l("the cat ate mat", "the cat sat on the mat") == pytest.approx(0.6)


def test_rouge_l_sees_words_of_other_scripts() -> None:
    assert rouge_l("посылка прибыла", "посылка прибыла вчера") == pytest.approx(0.8)


def test_chrf_weighs_what_is_too_much_as_what_is_missing() -> None:
    # one of three characters is right, the one that is wanted is there: 2 * 1/3 / (1/3 + 1)
    assert chrf("axy", "a") == pytest.approx(0.5)
    assert chrf("a", "axy") == chrf("axy", "a")


def test_chrf_by_hand() -> None:
    # "ab" against "ac": 1 of 2 characters, 0 of 1 pairs; orders beyond the text do not count.
    assert chrf("ab", "ac") == pytest.approx((1 / 2 + 0) / 2, abs=1e-6)
    assert chrf("", "ac") == 0


def test_edit_similarity_and_length_ratio_by_hand() -> None:
    assert edit_similarity("git commit -m x", "git commit") == pytest.approx(0.5)
    assert length_ratio("abcd", "ab") == 2.0
    assert length_ratio("", "ab") == 0.0
