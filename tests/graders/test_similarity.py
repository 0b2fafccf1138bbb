from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from tunesmith.graders.similarity import LONGEST, MEASURES, fuzzy_match, gleu, lcs, meteor

WORDS = st.lists(st.sampled_from(["a", "cat", "sat", "on", "mat", "it"]), max_size=12).map(" ".join)


def test_lcs_agrees_with_the_table() -> None:
    def table(a: str, b: str) -> int:
        row = [0] * (len(b) + 1)
        for x in a:
            before = row[:]
            for j, y in enumerate(b):
                row[j + 1] = before[j] + 1 if x == y else max(before[j + 1], row[j])
        return row[-1]

    for a, b in [("abcbdab", "bdcaba"), ("", "a"), ("a", ""), ("xyz", "xyz"), ("ab", "cd")]:
        assert lcs(a, b) == table(a, b)
    assert lcs("abcbdab", "bdcaba") == 4


@given(WORDS, WORDS)
def test_rouge_is_that_of_rouge_score(output: str, reference: str) -> None:
    kinds = {f"rouge_{n}": f"rouge{n}" for n in range(1, 6)} | {"rouge_l": "rougeL"}
    theirs = RougeScorer(list(kinds.values())).score(reference, output)
    for ours, kind in kinds.items():
        assert MEASURES[ours](output, reference) == pytest.approx(theirs[kind].fmeasure)


def test_gleu_of_a_worked_pair() -> None:
    # the cat sat: 3 + 2 + 1 n-grams; the cat ran off: 4 + 3 + 2 + 1; common: the, cat, the cat.
    assert gleu("The cat sat", "the cat ran off") == pytest.approx(3 / 10)
    assert gleu("the cat ran off", "the cat sat") == pytest.approx(3 / 10)


def test_meteor_of_worked_pairs() -> None:
    # One chunk of 6 matches: 1 - 0.5 / 6^3.
    assert meteor("the cat sat on the mat", "The cat sat on the mat") == pytest.approx(
        1 - 0.5 / 216
    )
    # on the mat | sat | the cat, in three chunks, all matched.
    swapped = meteor("on the mat sat the cat", "the cat sat on the mat")
    assert swapped == pytest.approx(1 - 0.5 * (3 / 6) ** 3)
    # 2 of 3 and 2 of 5 words, one chunk.
    mean = 10 * (2 / 3) * (2 / 5) / (2 / 5 + 9 * (2 / 3))
    assert meteor("the cat ran", "so the cat sat down") == pytest.approx(mean * (1 - 0.5 / 8))
    assert meteor("dog", "cat") == 0.0


def test_fuzzy_match_is_the_ratio_of_insertions_and_deletions() -> None:
    # this is a test / this is a test!: 14 of 14 and 15 characters, as rapidfuzz documents.
    assert fuzzy_match("this is a test", "this is a test!") == pytest.approx(28 / 29)
    assert fuzzy_match("lewenstein", "levenshtein") == pytest.approx(1 - 3 / 21)


@pytest.mark.parametrize("name", MEASURES)
def test_a_measure_is_1_for_the_same_text_and_0_for_nothing_in_common(name: str) -> None:
    text = "it sat on a mat and saw that all was well"
    floor = 1 - 0.5 / 10**3 if name == "meteor" else 1.0
    assert MEASURES[name](text, text) >= floor - 1e-3
    assert MEASURES[name]("zzz", "qqq") == 0.0
    assert MEASURES[name]("", "words there are") == 0.0
    assert 0.0 <= MEASURES[name]("", "") <= 1.0


@given(st.text(), st.text())
def test_every_measure_of_any_texts_is_between_0_and_1(output: str, reference: str) -> None:
    for measure in MEASURES.values():
        assert 0.0 <= measure(output, reference) <= 1.0


@pytest.mark.parametrize("name", MEASURES)
def test_the_longest_texts_take_seconds_at_most(name: str) -> None:
    started = time.monotonic()
    MEASURES[name]("ab " * (LONGEST // 3), "ba " * (LONGEST // 3))
    assert time.monotonic() - started < 20
