from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from tunesmith.chat import Message, SamplingParams, Tool
from tunesmith.data.examples import Conversation, Source
from tunesmith.evaluate.prompting import PromptPlan, instruction, search
from tunesmith.graders.choose import Chosen, choose
from tunesmith.testing import scripted_chat

PARAMS = SamplingParams(max_tokens=8)
SYSTEM = Message("system", "You sort mail.")


def row(file: str, line: int, question: str, answer: str) -> Conversation:
    turns = (SYSTEM, Message("user", question), Message("assistant", answer))
    return Conversation(turns, Source(file, line))


THINGS = ("parcel", "refund", "address", "invoice")
TRAIN = [row("train", i, f"about the {THINGS[i % 4]} no {i}", THINGS[i % 4]) for i in range(40)]
HELD = [row("held", i, f"the {THINGS[i % 4]} again, {i}", THINGS[i % 4]) for i in range(24)]
LABELS = choose([example.answer.content or "" for example in TRAIN], with_tools=False)


def words(messages: Sequence[Message], tools: Sequence[Tool]) -> int:
    return sum(len((message.content or "").split()) for message in messages) + 50 * len(tools)


def find(script: Callable[[Sequence[Message]], str], **changed: Any) -> PromptPlan:
    chosen: Chosen = changed.pop("chosen", LABELS)
    settings: dict[str, Any] = {
        "task": chosen.task, "primary": chosen.primary, "params": PARAMS, "count": words,
        "context": 4000, **changed,
    }  # fmt: skip
    train, held = settings.pop("train", TRAIN), settings.pop("validation", HELD)
    return asyncio.run(search(scripted_chat(script), train, held, chosen.graders, **settings))


def copies_the_last_example(messages: Sequence[Message]) -> str:
    answers = [message.content or "" for message in messages if message.role == "assistant"]
    return answers[-1] if answers else "?"


def test_the_prompt_that_works_is_found() -> None:
    plan = find(copies_the_last_example)
    assert "nearest" in plan.name
    assert dict(plan.tried)[plan.name] == 1.0 == plan.tried[0][1]
    assert dict(plan.tried)["no examples, instruction"] == 0.0
    assert len(plan.tried) == 6


def test_an_instruction_that_helps_is_found() -> None:
    def obeys(messages: Sequence[Message]) -> str:
        told = "Answer with exactly one" in (messages[0].content or "")
        few = len(messages) == 2
        question = messages[-1].content or ""
        return next(thing for thing in THINGS if thing in question) if told and few else "?"

    assert find(obeys).name == "no examples, instruction"


def test_examples_are_chat_turns_between_the_system_message_and_the_row() -> None:
    plan = find(copies_the_last_example)
    messages = plan.build(HELD[0])
    roles = [message.role for message in messages]
    assert roles == ["system", *["user", "assistant"] * ((len(roles) - 2) // 2), "user"]
    assert (messages[0].content or "").startswith("You sort mail.")
    assert messages[-1] == HELD[0].prompt[-1]


def test_random_examples_are_the_same_for_all_rows_and_so_share_a_prefix() -> None:
    def likes_random(messages: Sequence[Message]) -> str:
        shown = [message.content for message in messages if message.role == "assistant"]
        question = messages[-1].content or ""
        own = next(thing for thing in THINGS if thing in question)
        return own if len(set(shown)) > 1 else "?"

    plan = find(likes_random)
    assert "random" in plan.name
    shown = plan.build(HELD[0])[:-1]
    assert shown == plan.build(HELD[1])[:-1]
    assert [message.cache for message in shown] == [False] * (len(shown) - 1) + [True]


def test_trap_35_the_search_has_no_way_to_the_test_split_and_shows_training_rows_only() -> None:
    assert not [name for name in inspect.signature(search).parameters if "test" in name]
    seen: list[Sequence[Message]] = []

    def watches(messages: Sequence[Message]) -> str:
        seen.append(messages)
        return copies_the_last_example(messages)

    plan = find(watches)
    unseen = row("test", 1, "the parcel of the test split", "parcel")
    seen.append(plan.build(unseen))
    train = {(e.messages[1].content, e.messages[2].content) for e in TRAIN}
    for messages in seen:
        shown = [message.content for message in messages if message.role != "system"][:-1]
        assert set(zip(shown[::2], shown[1::2], strict=True)) <= train


def test_a_training_row_is_never_shown_to_itself() -> None:
    build = find(copies_the_last_example).build
    for example in TRAIN:
        assert example.prompt[-1] not in build(example)[:-1]


def test_prompts_over_the_budget_are_left_out_and_it_is_told() -> None:
    plan = find(copies_the_last_example, most_added=30)
    assert any("over 30 tokens more" in line for line in plan.left_out)
    assert all(not name.startswith("8 ") for name, _ in plan.tried)


def test_a_row_that_leaves_no_room_gets_fewer_examples_down_to_none() -> None:
    plan = find(copies_the_last_example, context=200)
    long = row("held", 99, "parcel " * 160, "parcel")
    assert 2 < len(plan.build(long)) < len(plan.build(HELD[0]))
    with_tools = replace(HELD[0], tools=({}, {}, {}))
    assert len(plan.build(with_tools)) < len(plan.build(HELD[0]))
    longer = row("held", 98, "parcel " * 190, "parcel")
    assert plan.build(longer) == longer.prompt


@pytest.mark.parametrize("missing", ["train", "validation"])
def test_without_rows_to_search_with_the_plan_is_the_bare_prompt(missing: str) -> None:
    plan = find(copies_the_last_example, **{missing: []})
    assert plan.build(HELD[0]) == HELD[0].prompt
    assert "no " in plan.description
    assert plan.tried == ()


def test_the_search_is_short_and_says_how_far_it_is() -> None:
    told: list[tuple[int, int]] = []
    find(copies_the_last_example, progress=lambda done, total: told.append((done, total)))
    # six candidates answer 8 rows, two the other 16
    assert told == [(i, 80) for i in range(1, 81)]


def test_the_same_seed_finds_the_same_prompt() -> None:
    once, again = find(copies_the_last_example), find(copies_the_last_example)
    assert (once.tried, once.build(HELD[3])) == (again.tried, again.build(HELD[3]))


def test_where_nothing_is_exact_the_likest_prompt_wins() -> None:
    plan = find(lambda messages: "parce" if len(messages) > 12 else "#")
    assert plan.name.startswith("8 ")
    assert all(score == 0.0 for _, score in plan.tried)


def test_the_instruction_names_fields_and_closed_values() -> None:
    values = [
        {"intent": ("track", "claim")[i % 2], "order": None if i % 2 else f"PD-{i}", "reply": f"r {i}"}
        | ({"slots": {"city": f"c{i}"}} if i % 2 else {})
        for i in range(20)
    ]  # fmt: skip
    rows = [row("train", i, "q", json.dumps(value)) for i, value in enumerate(values)]
    assert instruction(rows, "json") == (
        "Answer with one JSON object and nothing else. Its fields:\n"
        '- intent: "claim" or "track"\n'
        "- order: null or string\n"
        "- reply: string\n"
        "- slots (optional): object with any of city"
    )
    assert instruction(rows, "text") is None
    arrays = [row("train", i, "q", "[1]") for i in range(3)]
    assert instruction(arrays, "json") == "Answer with one JSON array and nothing else."
