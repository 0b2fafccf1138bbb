from __future__ import annotations

import asyncio
import json

import pytest

from tunesmith.chat import Message
from tunesmith.data.examples import Conversation, Source
from tunesmith.evaluate.instructions import instruction, proposed, written
from tunesmith.testing import scripted_chat


def row(answer: str, question: str = "q?", line: int = 0) -> Conversation:
    turns = (Message("user", question), Message("assistant", answer))
    return Conversation(turns, Source("train", line))


VALUES = [
    {"intent": ("track", "claim")[i % 2], "order": None if i % 2 else f"PD-{i}", "reply": f"r {i}"}
    | ({"slots": {"city": f"c{i}"}} if i % 2 else {})
    for i in range(20)
]


def test_the_instruction_names_fields_and_closed_values() -> None:
    rows = [row(json.dumps(value)) for value in VALUES]
    assert instruction(rows, "json") == (
        "Answer with one JSON object and nothing else. Its fields:\n"
        '- intent: "claim" or "track"\n'
        "- order: null or string\n"
        "- reply: string\n"
        "- slots (optional): object with any of city"
    )
    assert instruction(rows, "text") is None
    assert instruction([row("[1]")] * 3, "json") == "Answer with one JSON array and nothing else."


def test_the_schema_is_one_that_all_training_answers_fit() -> None:
    said = written([row(json.dumps(value)) for value in VALUES], "json", max_tokens=50)
    schema = json.loads(said["schema"].partition("\n")[2])
    assert schema == {
        "type": "object",
        "properties": {
            "intent": {"enum": ["claim", "track"]},
            "order": {"type": ["null", "string"]},
            "reply": {"type": ["string"]},
            "slots": {"type": ["object"]},
        },
        "required": ["intent", "order", "reply"],
    }
    assert "schema" not in written([row("[1]"), row("{}")], "json", max_tokens=50)


def test_labels_are_listed_in_two_ways_and_the_form_stands_alone() -> None:
    said = written([row("b"), row("a"), row("b")], "labels", max_tokens=500)
    assert list(said) == ["instruction", "careful instruction", "form"]
    assert said["instruction"].endswith("\na\nb")
    assert said["careful instruction"].startswith("Read the question and decide")
    assert said["careful instruction"].endswith("\n- a\n- b")
    assert "step by step" not in said


def test_text_is_described_by_its_length_and_thoughts_are_asked_for_where_there_is_room() -> None:
    rows = [row("one two three four", "Say it."), row("one two three", "Say it.")] * 2
    short, long = (written(rows, "text", max_tokens=n) for n in (199, 200))
    assert list(short) == ["form"]
    assert short["form"].startswith("Answer the message in about 4 words, in one paragraph.")
    assert list(long) == ["form", "step by step"]
    assert long["step by step"].endswith(short["form"])
    assert "several lines" in written([row("a\nb")], "text", max_tokens=9)["form"]
    assert "functions" in written([row("x")], "calls", max_tokens=9)["form"]


@pytest.mark.parametrize(
    "answer",
    [
        '["Do it.", "Do it well."]',
        'Here they are [as asked]:\n```json\n["Do it.", "Do it well."]\n```\nGood luck [really]!',
        '[{"instruction": "Do it."}, {"name": "b", "instruction": "Do it well."}]',
        "1. Do it.\n2) Do it well.\n",
        "- Do it.\n- Do it well.",
        '["Do it.", "Do it.", "Do it well.", 7, "", "One more."]',
        json.dumps(["x" * 3000, "Do it.", "Do it well."]),
    ],
)
def test_proposals_are_read_from_whatever_form_they_come_in(answer: str) -> None:
    model = scripted_chat(lambda messages: answer)
    found = asyncio.run(proposed(model, [row("a")], 2))
    assert found == ("Do it.", "Do it well.")


@pytest.mark.parametrize("answer", ["", "I cannot.", "[1, 2]", "[", "[[[["])
def test_an_answer_without_proposals_gives_none(answer: str) -> None:
    model = scripted_chat(lambda messages: answer)
    assert asyncio.run(proposed(model, [row("a")], 2)) == ()


def test_a_proposer_sees_the_rows_it_is_shown_and_no_more_of_each_than_a_part() -> None:
    seen: list[str] = []
    model = scripted_chat(lambda messages: seen.append(messages[0].content or "") or "[]")
    asyncio.run(proposed(model, [row("the answer", "w" * 5000)], 3))
    assert "answer: the answer" in seen[0]
    assert "Write 3 different" in seen[0]
    assert len(seen[0]) < 1500
