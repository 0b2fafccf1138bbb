from __future__ import annotations

import pytest

from tunesmith.chat import Message
from tunesmith.data.examples import Conversation, Source
from tunesmith.evaluate.classical import Neighbours
from tunesmith.evaluate.prompts import Design, Maker, designs, diverse

INSTRUCTIONS = {"instruction": "one of a, b", "form": "alone", "proposal 1": "think"}


def row(line: int, question: str, answer: str) -> Conversation:
    turns = (Message("user", question), Message("assistant", answer))
    return Conversation(turns, Source("train", line))


TRAIN = [row(i, f"{'ab'[i % 2] * 3} {i}", "ab"[i % 2]) for i in range(40)]


def maker() -> Maker:
    return Maker(
        TRAIN, INSTRUCTIONS, lambda messages, tools: len(messages),
        task="labels", room=1000, most_added=1000, seed=0,
    )  # fmt: skip


@pytest.mark.parametrize("task", ["labels", "json", "calls", "text"])
def test_designs_are_all_there_once_and_known_by_their_names(task: str) -> None:
    found = designs(list(INSTRUCTIONS), task)  # type: ignore[arg-type]
    names = [design.name for design in found]
    assert len(set(names)) == len(found)
    # 4 numbers, 3 ways to pick, 4 instructions with none; no examples; the nearest row first
    assert len(found) == 4 * 3 * 4 + 4 + 4 * 2
    assert "bare" in names
    proposals = [place for place, name in enumerate(names) if "proposal" in name]
    assert proposals[0] < 3


def test_what_promises_most_stands_first() -> None:
    told = ["instruction", "form"]
    assert [design.name for design in designs(told, "labels")][:6] == [
        *("no examples, instruction", "4 nearest, instruction", "8 diverse, instruction"),
        *("8 nearest", "8 nearest, instruction", "4 nearest"),
    ]
    assert [design.name for design in designs(["form"], "text")][:6] == [
        *("bare", "4 nearest", "8 nearest", "no examples, form", "4 nearest, form", "8 diverse"),
    ]


def test_the_nearest_row_stands_last_or_first() -> None:
    asked = row(99, "aaa 4", "a")
    shown = {
        turned: [m.content for m in maker().builder(Design(None, 2, turned=turned))(asked)]
        for turned in (False, True)
    }
    assert shown[False][-3:] == ["aaa 4", "a", "aaa 4"]
    assert shown[True][:2] == ["aaa 4", "a"]


def test_a_design_without_anything_is_the_bare_prompt() -> None:
    asked = row(99, "aaa 4", "a")
    assert tuple(maker().builder(Design())(asked)) == asked.prompt


def test_diverse_rows_take_turns_among_labels_the_frequent_ones_first() -> None:
    train = [row(i, f"q {i}", "a" if i < 30 else "bcdefghijk"[i - 30]) for i in range(40)]
    answers = [r.answer.content for r in diverse(train, "labels", 12, 0)]
    assert answers[0] == "a"
    assert len(set(answers[:11])) == 11
    assert answers[11] == "a"
    assert diverse(train, "labels", 5, 0) == diverse(train, "labels", 5, 0)


def test_covering_rows_by_hand() -> None:
    texts = [
        "refund money",
        "refund money",
        "refund money now",
        "parcel lost",
        "parcel lost",
        "zzz",
    ]
    rows = [row(i, text, "x") for i, text in enumerate(texts)]
    chosen = [r.prompt[0].content for r in Neighbours(rows).covering(3, 0)]
    # The largest group first; nothing is chosen twice while something new is left.
    assert chosen[0] == "refund money"
    assert chosen[1:] == ["parcel lost", "zzz"]
    assert len(Neighbours(rows).covering(50, 0)) == 6
