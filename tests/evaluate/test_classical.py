from __future__ import annotations

import asyncio

import pytest

from tunesmith.chat import Message, SamplingParams, ToolCall, Usage
from tunesmith.data.examples import Conversation, Source
from tunesmith.evaluate.classical import Classical, Neighbours, fit, question, sample_rows


def row(question: str, answer: str | Message, line: int = 1) -> Conversation:
    last = answer if isinstance(answer, Message) else Message("assistant", answer)
    return Conversation((Message("user", question), last), Source("train.jsonl", line))


LABELLED = [
    row(f"{opening} {thing} {i}", label, i)
    for i, opening in enumerate(["where is", "please say where", "I wait for", "still no"])
    for thing, label in (("my parcel", "track"), ("the refund money", "refund"))
]


def ask(model: Classical, question: str) -> str:
    prompt = [Message("system", "You sort mail."), Message("user", question)]
    return asyncio.run(model.complete(prompt, SamplingParams())).text


def test_a_classifier_learns_the_labels() -> None:
    model = fit(LABELLED, "labels")
    assert ask(model, "has my parcel been seen") == "track"
    assert ask(model, "give me the money of my refund") == "refund"
    assert model.description == "TF-IDF and a linear classifier on 8 training rows"


def test_one_label_alone_is_always_the_answer() -> None:
    model = fit([row("a", "spam"), row("b", "spam")], "labels")
    assert ask(model, "anything") == "spam"


@pytest.mark.parametrize("task", ["json", "text"])
def test_the_nearest_row_answers_everything_else(task: str) -> None:
    rows = [row("list the files", "ls"), row("remove a folder", "rm -r x")]
    model = fit(rows, task)  # type: ignore[arg-type]
    assert ask(model, "remove the folder foo") == "rm -r x"
    assert model.description == "the nearest of 2 training rows by TF-IDF"


def test_the_nearest_row_may_call_functions_and_costs_no_tokens() -> None:
    call = Message("assistant", None, tool_calls=(ToolCall("1", "find", "{}"),))
    model = fit([row("look", call)], "calls")
    answer = asyncio.run(model.complete([Message("user", "look")], SamplingParams()))
    assert (answer.finish_reason, answer.tool_calls) == ("tool_calls", call.tool_calls)
    assert "<tool_call>" in answer.text
    assert answer.usage == Usage(0, 0)


@pytest.mark.parametrize("text", ["", "??", "🙂", "邮件"])
def test_texts_without_latin_words_are_no_trouble(text: str) -> None:
    rows = [row(text, "a"), row("🙃!", "b")]
    assert ask(fit(rows, "labels"), text) in "ab"
    assert ask(fit(rows, "text"), text) == "a"


def test_more_rows_than_the_limit_are_sampled_and_it_is_said() -> None:
    model = fit((row(f"row {i}", f"answer {i}", i) for i in range(100)), "text", limit=10)
    assert model.description == "the nearest of 10 training rows (sampled from 100) by TF-IDF"
    assert [ask(model, "row 7")] * 2 == [ask(model, "row 7") for _ in range(2)]


def test_a_sample_is_fair_and_seeded() -> None:
    rows = [row("q", "a", i) for i in range(20)]
    counts = [0] * 20
    for seed in range(400):
        kept, seen = sample_rows(rows, 5, seed)
        assert seen == 20
        for example in kept:
            counts[example.source.line] += 1
    assert all(60 <= count <= 145 for count in counts)
    assert sample_rows(rows, 5, 1) == sample_rows(rows, 5, 1)


def test_neighbours_stand_nearest_first_and_ties_in_order() -> None:
    rows = [row("red car", "1"), row("blue sky", "2"), row("red car", "3"), row("red cart", "4")]
    found = Neighbours(rows).nearest([Message("user", "red car")], 3)
    assert [example.answer.content for example in found] == ["1", "3", "4"]


def test_the_question_leaves_the_system_out() -> None:
    turns = [Message("system", "s"), Message("user", "a"), Message("assistant", "b")]
    assert question(turns) == "a\nb"
