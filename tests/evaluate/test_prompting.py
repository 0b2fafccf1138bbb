from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.chat import Message, SamplingParams, Tool
from tunesmith.data.examples import Conversation, Source
from tunesmith.evaluate.prompting import PromptPlan, Schedule, schedule, search
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


def test_diverse_examples_are_the_same_for_all_rows_and_so_share_a_prefix() -> None:
    def likes_variety(messages: Sequence[Message]) -> str:
        shown = [message.content for message in messages if message.role == "assistant"]
        question = messages[-1].content or ""
        own = next(thing for thing in THINGS if thing in question)
        return own if len(set(shown)) > 1 else "?"

    plan = find(likes_variety)
    assert "diverse" in plan.name
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
    assert any("beyond the budget of 80 answers" in line for line in plan.left_out)


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


def test_the_search_by_hand() -> None:
    """Two designs get some rows right: the one that also lasts on the rows of the last round wins."""

    def answers(messages: Sequence[Message]) -> str:
        system, question = messages[0].content or "", messages[-1].content or ""
        own, number = next(t for t in THINGS if t in question), int(question.split()[-1])
        if "Answer with exactly one" not in system:
            return "?"
        if len(messages) == 2:
            return own if number < 16 else "?"
        return own if number < 12 or number % 2 else "?"

    plan = find(answers)
    # no examples: 16 of 24; with some: 12 of the first 12, 6 of the other 12
    assert dict(plan.tried)["no examples, instruction"] == 16 / 24
    assert plan.tried[0] == (plan.name, 18 / 24)
    assert plan.lead is not None
    assert (plan.lead.second, plan.lead.rows) == ("no examples, instruction", 24)
    assert plan.lead.difference == pytest.approx(2 / 24)
    assert plan.lead.low < 0 < plan.lead.high
    assert f"+0.08 (95 % {plan.lead.low:+.2f}" in plan.description


@given(st.integers(0, 3000), st.integers(0, 150), st.integers(0, 300))
def test_a_schedule_stays_within_its_budget(budget: int, candidates: int, rows: int) -> None:
    found = schedule(budget, candidates, rows)
    assert found.answers <= budget
    assert found.candidates <= candidates
    assert found.rows <= rows
    if candidates and rows and budget >= 2:
        assert found.answers > 0
    if found.candidates < candidates:
        assert found.rows <= 24
    assert schedule(budget + 1, candidates, rows).candidates >= found.candidates


def test_schedules_by_hand() -> None:
    assert schedule(80, 100, 200) == Schedule(6, 24)
    assert Schedule(6, 24).rounds == [(6, 8), (2, 16)]
    # 30 on 8 rows each, ten on 16 more
    assert schedule(400, 100, 200) == Schedule(30, 24)
    # all six, and what is left goes into rows: 6 x 40 + 2 x 80
    assert schedule(400, 6, 200) == Schedule(6, 120)
    assert schedule(20, 100, 200) == Schedule(2, 10)
    assert schedule(80, 100, 2) == Schedule(40, 2)


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 150), st.integers(1, 24))
def test_the_budget_is_never_passed(budget: int, rows: int) -> None:
    asked: list[object] = []

    def counts(messages: Sequence[Message]) -> str:
        asked.append(messages)
        return "parcel"

    plan = find(counts, budget=budget, validation=HELD[:rows])
    assert len(asked) == plan.answers <= budget
    assert len(plan.tried) == len({name for name, _ in plan.tried})
    if budget < 2:
        assert (plan.name, plan.tried) == ("bare", ())
        assert "a budget of" in plan.description


@pytest.mark.parametrize("task", ["labels", "text"])
def test_any_prompt_is_built_again_from_its_name_without_asking(task: str) -> None:
    def never(messages: Sequence[Message]) -> str:
        raise AssertionError

    chosen = LABELS if task == "labels" else choose(["some text of it"] * 3, with_tools=False)
    texts = ["Sort it.", "Look at the thing."]
    plan = find(copies_the_last_example, budget=150, proposed=texts, chosen=chosen)
    for name, _ in plan.tried:
        again = find(never, known=name, validation=[], proposed=texts, chosen=chosen)
        assert again.name == name
        if name == plan.name:
            assert [again.build(row) for row in HELD] == [plan.build(row) for row in HELD]


def test_an_instruction_that_was_proposed_is_tried_and_found() -> None:
    def obeys(messages: Sequence[Message]) -> str:
        question = messages[-1].content or ""
        magic = "Look at the thing." in (messages[0].content or "")
        return next(thing for thing in THINGS if thing in question) if magic else "?"

    plan = find(obeys, proposed=["Sort it.", "Look at the thing."])
    assert "proposal 2" in plan.name
    told = plan.build(HELD[0])[0].content or ""
    # The user's own system message, the proposal, and the labels, which a proposal may not know.
    assert told.startswith("You sort mail.\n\nLook at the thing.\n\nAnswer with exactly one")
