"""Prompts for a row: an instruction, training rows as examples, then the row, as much as fits."""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from tunesmith.chat import Message, Tool, answer_text
from tunesmith.data.examples import Conversation
from tunesmith.evaluate.classical import Neighbours
from tunesmith.evaluate.evaluation import Build
from tunesmith.graders.choose import Task

Count = Callable[[Sequence[Message], Sequence[Tool]], int]
"""Tokens of a prompt with its function definitions, as the model's template renders them."""
Pick = Literal["nearest", "diverse", "random"]
SHOTS = (8, 4, 16, 2)
"""Numbers of examples, in order of what they promise."""


@dataclass(frozen=True, slots=True)
class Design:
    """How a prompt is made.

    Attributes:
        instruction: its name; None leaves it out.
        pick: which rows are shown: the nearest to the row that is asked, or the same for all, which
            an engine that shares prefixes computes once.
        turned: the nearest row stands first instead of last.
    """

    instruction: str | None = None
    shots: int = 0
    pick: Pick = "nearest"
    turned: bool = False

    @property
    def name(self) -> str:
        """What it is called in reports, and known by."""
        if self == Design():
            return "bare"
        shown = f"{self.shots} {self.pick}" if self.shots else "no examples"
        turned = ", nearest first" if self.turned else ""
        return f"{shown}{turned}" + (f", {self.instruction}" if self.instruction else "")


def designs(instructions: Sequence[str], task: Task) -> list[Design]:
    """Every design, in order of what it promises for its cost; `instructions` likewise.

    Where answers have a closed form, the first instruction names it and stands first; for free text
    examples show more than it says. What is proposed comes next, then the rest.
    """
    first, *others = instructions
    ours = [name for name in others if not name.startswith(PROPOSED)]
    theirs = [name for name in others if name.startswith(PROPOSED)]
    told = Design(first)
    near, same = replace(told, shots=8), replace(told, shots=8, pick="diverse")
    if task in ("labels", "json"):
        start = [told, replace(told, shots=4), same, Design(shots=8), near, Design(shots=4)]
    else:
        start = [Design(), Design(shots=4), Design(shots=8), told, replace(told, shots=4)]
        start.append(Design(shots=8, pick="diverse"))
    proposals = [Design(name) for name in theirs]
    proposals += [Design(name, shots=8, pick="diverse") for name in theirs]
    # The proposals take turns with ours: a small budget tries some of both.
    mixed = [item for pair in itertools.zip_longest(start, proposals) for item in pair if item]
    picks: tuple[Pick, ...] = ("nearest", "diverse", "random")
    rest = [Design(name) for name in (None, *ours)]
    rest += [
        Design(name, shots, pick)
        for shots, pick, name in itertools.product(SHOTS, picks, (first, None, *theirs, *ours))
    ]
    rest += [Design(name, shots, turned=True) for shots in SHOTS for name in (first, None)]
    return list(dict.fromkeys([*mixed, *rest]))


PROPOSED = "proposal"
"""What the names of proposed instructions begin with."""


class Maker:
    """Builds prompts by design.

    Args:
        train: at least one row.
        instructions: texts by name.
        count: tokens of a prompt.
        room: most tokens of a prompt.
        most_added: most tokens that instruction and examples add to a row's own prompt.
    """

    def __init__(
        self,
        train: Sequence[Conversation],
        instructions: Mapping[str, str],
        count: Count,
        *,
        task: Task,
        room: int,
        most_added: int,
        seed: int,
    ) -> None:
        self.train, self.instructions, self.most_added = train, instructions, most_added
        self._count, self._room, self._seed = count, room, seed
        self._task: Task = task
        self._neighbours = Neighbours(train)

    def builder(self, design: Design) -> Build:
        """What is sent for a row: as many of the design's examples as fit."""

        def build(row: Conversation) -> Sequence[Message]:
            shown = self._shown(design, row)
            for shots in range(len(shown), -1, -1):
                messages = self._messages(design, shown[:shots], row)
                if self._fits(messages, row):
                    return messages
            return row.prompt

        return build

    def fits(self, design: Design, row: Conversation) -> bool:
        """Whether the row has room for the instruction and every example."""
        return self._fits(self._messages(design, self._shown(design, row), row), row)

    def _fits(self, messages: Sequence[Message], row: Conversation) -> bool:
        tokens = self._count(messages, row.tools)
        added = tokens - self._count(row.prompt, row.tools)
        return tokens <= self._room and added <= self.most_added

    def _shown(self, design: Design, row: Conversation) -> list[Conversation]:
        # One more than needed, because a training row is never shown to itself.
        wanted = design.shots + 1 if design.shots else 0
        if not wanted:
            return []
        if design.pick == "nearest":
            found = self._neighbours.nearest(row.prompt, wanted)
        else:
            found = (self._diverse if design.pick == "diverse" else self._random)[:wanted]
        others = [example for example in found if example.source != row.source]
        return others[: design.shots]

    @cached_property
    def _random(self) -> list[Conversation]:
        most = max(SHOTS) + 1
        return random.Random(self._seed).sample(self.train, min(len(self.train), most))

    @cached_property
    def _diverse(self) -> list[Conversation]:
        return diverse(self.train, self._task, max(SHOTS) + 1, self._seed, self._neighbours)

    def _messages(
        self, design: Design, shown: Sequence[Conversation], row: Conversation
    ) -> list[Message]:
        system = [message for message in row.prompt[:1] if message.role == "system"]
        turns = row.prompt[len(system) :]
        if design.instruction is not None:
            said = [message.content for message in system if message.content]
            text = self.instructions[design.instruction]
            system = [Message("system", "\n\n".join([*said, text]))]
        last = design.pick == "nearest" and not design.turned
        examples = [
            message
            for example in (reversed(shown) if last else shown)
            for message in example.messages
            if message.role != "system"
        ]
        if examples and design.pick != "nearest":
            examples[-1] = replace(examples[-1], cache=True)
        return [*system, *examples, *turns]


def diverse(
    train: Sequence[Conversation],
    task: Task,
    count: int,
    seed: int,
    neighbours: Neighbours | None = None,
) -> list[Conversation]:
    """Rows that stand for all: of labels, one of each in turn, frequent ones first; else the rows
    that together are likest to all others (`Neighbours.covering`)."""
    if task != "labels":
        return (neighbours or Neighbours(train)).covering(count, seed)
    rows = random.Random(seed).sample(train, len(train))
    by_label: dict[str, list[Conversation]] = defaultdict(list)
    for row in rows:
        by_label[answer_text(row.answer).strip()].append(row)
    groups = sorted(by_label.values(), key=len, reverse=True)
    turns = itertools.chain.from_iterable(itertools.zip_longest(*groups))
    return [row for row in turns if row is not None][:count]
