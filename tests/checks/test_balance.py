from __future__ import annotations

from collections.abc import Callable, Iterable

from tunesmith.chat import Message
from tunesmith.checks.balance import Labels
from tunesmith.checks.row import look
from tunesmith.data.examples import Conversation, Source, UnpairedPreference

Talk = Callable[..., Conversation]


def seen(talk: Talk, answers: Iterable[str]) -> Labels:
    labels = Labels()
    for line, answer in enumerate(answers, 1):
        labels.see(look(talk(f"q{line}", answer, line=line)))
    return labels


def test_repeating_short_answers_are_labels(talk: Talk) -> None:
    labels = seen(talk, ["refund"] * 6 + ["delivery"] * 9)
    assert labels.counts == (("delivery", 9), ("refund", 6))
    assert list(labels.findings()) == []


def test_prose_json_and_answers_that_hardly_repeat_are_not_labels(talk: Talk) -> None:
    assert seen(talk, ["a"] * 20 + ["a\nb"]).counts is None
    assert seen(talk, ['{"intent": "refund"}'] * 20 + ['{"intent": "x"}'] * 20).counts is None
    assert seen(talk, [f"answer {n // 2}" for n in range(40)]).counts is None
    assert seen(talk, ["yes"] * 20).counts is None
    assert seen(talk, ["long " * 20] * 20 + ["b"] * 20).counts is None


def test_more_labels_than_any_classifier_has_are_no_longer_held(talk: Talk) -> None:
    assert seen(talk, [str(n) for n in range(1500)] * 4).counts is None


def test_a_rating_is_not_a_label() -> None:
    labels = Labels()
    prompt, answer = (Message("user", "q"),), (Message("assistant", "a"),)
    labels.see(look(UnpairedPreference(prompt, answer, True, Source("f", 1))))
    assert labels.counts is None


def test_dominant_rare_and_differently_written_labels_are_told(talk: Talk) -> None:
    labels = seen(talk, ["Refund"] * 50 + ["refund "] * 2 + ["delivery"] * 5)
    dominant, rare, twice = labels.findings()
    assert "50 of 57 rows (88%) have the label 'Refund'" in dominant.message
    assert "1 of 3 labels have fewer than 5 rows: 'refund '" in rare.message
    assert rare.rows == ("rows.jsonl:51", "rows.jsonl:52")
    assert "2 labels differ from another only in" in twice.message
