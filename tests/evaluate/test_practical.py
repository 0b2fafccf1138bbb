from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.evaluate.evaluation import Measured, Sample
from tunesmith.evaluate.practical import (
    abstains,
    edit_effort,
    entry,
    groundedness,
    labels_of,
    latency,
    refuses,
    words,
)
from tunesmith.graders.labels import normal

ROW = Sample(
    id="t:1", prompt="q", reference="a b c d", output="a b c d", scores={}, tokens_in=10,
    tokens_out=2, seconds=0.5, finish_reason="stop", cluster="1",
)  # fmt: skip


def arm(kind: str, *samples: Sample) -> Measured:
    rows = tuple(replace(s, id=f"t:{i}", cluster=str(i)) for i, s in enumerate(samples))
    return Measured(kind, kind, rows, {})  # type: ignore[arg-type]


def test_edit_effort_by_hand() -> None:
    # one of four words is to be changed; two are to be added to one that stays
    assert edit_effort("the cat sat down", "the dog sat down") == 0.25
    assert edit_effort("yes", "yes it is") == pytest.approx(2 / 3)
    assert edit_effort("", "") == 0.0
    assert edit_effort("", "a b") == edit_effort("a b", "") == 1.0


def test_scripts_without_spaces_are_counted_by_character() -> None:
    assert words("明日 KP-12 です") == ["明", "日", "KP-12", "で", "す"]
    assert edit_effort("猫がいる", "犬がいる") == 0.25


@given(st.text(max_size=30), st.text(max_size=30))
def test_edit_effort_is_a_share_and_the_same_from_either_side(a: str, b: str) -> None:
    assert 0 <= edit_effort(a, b) == edit_effort(b, a) <= 1
    assert edit_effort(a, a) == 0


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I’m sorry, I am unable to provide this.",
        "Sorry, but I cannot",
        "I cannot assist with that request.",
        "Unfortunately, I cannot provide medical advice.",
        "As an AI language model, I have no opinions.",
        "We must decline to answer.",
        "**I can't create that.**",
    ],
)
def test_refusals_are_recognised(text: str) -> None:
    assert refuses(text)


@pytest.mark.parametrize(
    "text",
    [
        "I am sorry to hear that. Please call us.",
        "We cannot deliver on Sundays.",
        "Your driver said: I can't help with that.",
        '{"reply": "Sorry, I can\'t help"}',
        "",
    ],
)
def test_what_is_no_refusal_is_none(text: str) -> None:
    assert not refuses(text)


def test_saying_that_there_is_no_answer() -> None:
    for text in ("", "I don't know.", "The text does not mention it.", "unanswerable", "N/A"):
        assert abstains(text)
    assert not abstains("Paris")
    long = "It was built in 1887. " * 10 + "Its height is unknown."
    assert not abstains(long)


def test_groundedness_by_hand() -> None:
    shown = ["The tower was built in 1887 by Eiffel's company.", "It has three levels."]
    assert groundedness("The tower was built in 1887.", shown) == 1.0
    # words tower, built, 1890: 2 of 3; pairs 1 of 2; triples 0 of 1
    assert groundedness("tower built 1890", shown) == pytest.approx((2 / 3 + 1 / 2) / 3)
    assert groundedness("Wings fly", shown) == 0.0
    assert groundedness("It is the", shown) is None
    assert groundedness("tower", []) == 0.0


def test_a_run_of_words_stands_in_one_passage() -> None:
    apart = groundedness("red house", ["red", "house"])
    assert apart == pytest.approx((1.0 + 0.0) / 2)


def test_the_figures_of_an_arm_by_hand() -> None:
    rows = [
        ROW,
        replace(ROW, output="a b c x", finish_reason="length"),
        replace(ROW, output="I'm sorry, I cannot help.", tokens_in=20),
        replace(ROW, output=" "),
    ]
    found = entry(arm("base", *rows), task="text")
    assert found["edit_effort"]["value"] == pytest.approx((0 + 0.25 + 1 + 1) / 4)
    assert {name: found[name]["value"] for name in ("refused", "empty", "cut_off")} == {
        "refused": 0.25, "empty": 0.25, "cut_off": 0.25,
    }  # fmt: skip
    assert {found[name]["better"] for name in ("edit_effort", "refused", "empty")} == {"lower"}
    assert found["refused"]["low"] < 0.25 < found["refused"]["high"]
    for name in ("valid_format", "unanswerable_answered", "groundedness", "tokens_saved"):
        assert found[name]["value"] is None
        assert found[name]["reason"]


def test_form_is_a_known_label_or_what_the_grader_says() -> None:
    labels = labels_of(["yes", "no."], "labels")
    rows = [replace(ROW, output=text) for text in ("Yes", "yes", "No", " no", "maybe")]
    told = entry(arm("base", *rows), task="labels", labels=labels)["valid_format"]
    known = {normal("yes"), normal("no")}
    assert told["value"] == sum(normal(row.output) in known for row in rows) / 5
    json = entry(arm("base", replace(ROW, scores={"valid": 1.0}), ROW), task="json")
    assert (json["valid_format"]["value"], json["valid_format"]["n"]) == (1.0, 1)
    assert labels_of(["yes"], "text") == frozenset()


def test_a_question_without_an_answer_is_to_be_left_unanswered() -> None:
    rows = [
        replace(ROW, reference="I don't know.", output="Paris"),
        replace(ROW, reference="unanswerable", output="The text does not say."),
        ROW,
    ]
    told = entry(arm("rag", *rows), task="text")["unanswerable_answered"]
    assert (told["value"], told["n"], told["better"]) == (0.5, 2, "lower")


def test_an_empty_answer_is_none_where_none_was_wanted() -> None:
    assert (
        entry(arm("base", replace(ROW, reference="", output="")), task="text")["empty"]["value"]
        == 0.0
    )


def test_what_tuning_saves_is_told_against_base_and_prompt_by_row() -> None:
    base = arm("base", *[replace(ROW, output="x y c d")] * 8)
    prompt = arm("prompt", *[replace(ROW, tokens_in=110)] * 8)
    tuned = arm("tuned", *[ROW] * 7, replace(ROW, tokens_in=30))
    found = entry(tuned, task="text", base=base, prompt=prompt)
    assert found["edits_saved"]["value"] == 0.5
    assert found["edits_saved"]["p"] == pytest.approx(2 / 2**8)
    assert found["tokens_saved"]["value"] == pytest.approx((7 * 100 + 80) / 8)
    # A row that was not seen may differ as much as any that was, in either direction.
    assert -100 < found["tokens_saved"]["low"] < 97.5 < found["tokens_saved"]["high"] < 100
    assert found["tokens_saved"]["better"] == "higher"
    assert entry(base, task="text", base=base, prompt=prompt)["edits_saved"]["value"] is None


def test_answers_to_one_prompt_are_one_cluster() -> None:
    rows = [replace(ROW, output="" if i < 10 else "a") for i in range(20)]
    alone = entry(arm("base", *rows), task="text")["empty"]
    samples = tuple(replace(s, id=str(i), cluster=str(i % 2)) for i, s in enumerate(rows))
    crowd = entry(Measured("base", "base", samples, {}), task="text")["empty"]
    assert crowd["high"] - crowd["low"] > alone["high"] - alone["low"] + 0.2


def test_passages_ground_an_answer() -> None:
    rows = [replace(ROW, output="tower 1887", passages=("the tower of 1887",)), ROW]
    found = entry(arm("rag", *rows), task="text")["groundedness"]
    assert (found["value"], found["n"], found["better"]) == (1.0, 1, "higher")


def test_latency_says_its_load() -> None:
    alone = [replace(ROW, seconds=s) for s in (3.0, 1.0, 2.0, 10.0)]
    assert latency(64, alone) == {
        "rows_at_once": 64,
        "alone": {"p50": 2.5, "fastest": 1.0, "slowest": 10.0, "n": 4},
    }
    assert latency(64, [])["alone"]["value"] is None
