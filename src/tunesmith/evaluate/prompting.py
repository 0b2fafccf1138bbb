"""What prompting alone reaches: a small search for a few-shot prompt on the validation split.

Prompts differ in whether an instruction names the labels or the JSON's fields, in how many
training rows they show, and in whether those are the same for all (computed once by an engine
that shares prefixes) or the nearest to each row. The search is by successive halving (Jamieson and
Talwalkar 2016, arXiv:1502.07943), in two rounds: all candidates answer a few rows, the best third
answers more.
It sees training and validation rows and nothing else.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from tunesmith.chat import ChatModel, Message, SamplingParams, Tool, answer_text
from tunesmith.data.examples import Conversation
from tunesmith.evaluate.classical import MOST_ROWS, Neighbours, sample_rows
from tunesmith.evaluate.evaluation import Arm, Build, Progress, Sample, answer, bare
from tunesmith.graders import structured
from tunesmith.graders.choose import Task
from tunesmith.graders.grader import Grader
from tunesmith.graders.text import chrf

Count = Callable[[Sequence[Message], Sequence[Tool]], int]
"""Tokens of a prompt with its function definitions, as the model's template renders them."""

_MOST_CANDIDATES = 6
_MOST_VALUES = 12
_MOST_KEYS = 40
_ANSWER_ROOM = 256


@dataclass(frozen=True, slots=True)
class PromptPlan:
    """The prompt that was found.

    Attributes:
        build: the messages for a row.
        tried: each candidate with its mean of the primary metric over the rows it answered.
        left_out: candidates that were not tried, each with the reason.
    """

    build: Build
    name: str
    description: str
    tried: tuple[tuple[str, float], ...]
    left_out: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Candidate:
    instruct: bool
    shots: int
    pick: Literal["random", "nearest"]

    @property
    def name(self) -> str:
        shown = f"{self.shots} {self.pick}" if self.shots else "no examples"
        return f"{shown}, instruction" if self.instruct else shown


def _candidates(instruction: bool) -> list[_Candidate]:
    """In order of what they promise for their cost; the first that fit are tried."""
    order: list[tuple[bool, int, Literal["random", "nearest"]]] = [
        (True, 0, "random"),
        (True, 4, "nearest"),
        (True, 4, "random"),
        (False, 4, "nearest"),
        (True, 8, "nearest"),
        (False, 8, "nearest"),
        (False, 2, "nearest"),
        (False, 4, "random"),
        (True, 2, "nearest"),
        (False, 8, "random"),
        (False, 2, "random"),
        (True, 8, "random"),
        (True, 2, "random"),
    ]
    return [_Candidate(*row) for row in order if instruction or not row[0]]


async def search(
    model: ChatModel,
    train: Sequence[Conversation],
    validation: Sequence[Conversation],
    graders: Sequence[Grader],
    *,
    task: Task,
    primary: str,
    params: SamplingParams,
    count: Count,
    context: int,
    most_added: int = 1000,
    rows: int = 24,
    concurrency: int = 16,
    progress: Progress | None = None,
    seed: int = 0,
    known: str | None = None,
) -> PromptPlan:
    """The best prompt of at most six candidates, by `primary` and then chrF, on validation rows.

    Args:
        params: sampling settings as they will be used for the arm.
        count: tokens of a prompt; with `context`, the model's limit, it keeps prompts that fit.
        most_added: most tokens that instruction and examples may add to a row's own prompt.
        rows: most validation rows that the finalists answer; a seeded sample.
        progress: told after every answer.
        known: name of the prompt that an earlier search found; it is built without asking.
    """
    examples, _ = sample_rows(train, MOST_ROWS, seed)
    held, _ = sample_rows(validation, rows, seed)
    if not examples or not held:
        why = "no training rows" if not examples else "no validation rows"
        return PromptPlan(bare, "bare", f"the bare prompt: {why} to search with", (), ())
    room = context - (params.max_tokens or _ANSWER_ROOM)
    maker = _Maker(examples, instruction(examples, task), count, room, most_added, seed)
    candidates, left_out = _that_fit(maker, held)
    if not candidates:
        reason = "the bare prompt: no example or instruction fits beside a row"
        return PromptPlan(bare, "bare", reason, (), tuple(left_out))

    again = next((candidate for candidate in candidates if candidate.name == known), None)
    if again is not None:
        return PromptPlan(maker.builder(again), again.name, again.name, (), tuple(left_out))

    async def ask(
        candidate: _Candidate, part: Sequence[Conversation], told: Progress | None
    ) -> tuple[Sample, ...]:
        arm = Arm(candidate.name, "prompt", model, maker.builder(candidate))
        return await answer(
            arm, part, graders, params=params, concurrency=concurrency, progress=told
        )

    ranked = await _halve(candidates, held, ask, primary, progress)
    best = ranked[0][0]
    description = (
        f"{best.name}: the best of {len(candidates)} prompts on up to {len(held)} validation rows;"
        f" fewer examples where they would add over {most_added:,} tokens to a row"
    )
    tried = tuple((candidate.name, score) for candidate, score in ranked)
    return PromptPlan(maker.builder(best), best.name, description, tried, tuple(left_out))


def _that_fit(maker: _Maker, held: Sequence[Conversation]) -> tuple[list[_Candidate], list[str]]:
    """Candidates of which all fits for at least half of the rows; and those left out, with why."""
    fitting: list[_Candidate] = []
    left_out: list[str] = []
    for candidate in _candidates(maker.instruction is not None):
        if candidate.shots > len(maker.train):
            left_out.append(f"{candidate.name}: only {len(maker.train)} training rows")
        elif len(fitting) == _MOST_CANDIDATES:
            left_out.append(f"{candidate.name}: {_MOST_CANDIDATES} candidates are enough")
        elif sum(maker.fits(candidate, row) for row in held) < len(held) / 2:
            left_out.append(
                f"{candidate.name}: over {maker.most_added:,} tokens more, or over the context"
            )
        else:
            fitting.append(candidate)
    return fitting, left_out


_Ask = Callable[
    [_Candidate, Sequence[Conversation], Progress | None], Awaitable[tuple[Sample, ...]]
]


async def _halve(
    candidates: Sequence[_Candidate],
    held: Sequence[Conversation],
    ask: _Ask,
    primary: str,
    progress: Progress | None,
) -> list[tuple[_Candidate, float]]:
    """All candidates with their mean score, best first: those that lasted longer stand before."""
    third = len(held) // 3
    going, out = list(candidates), list[_Candidate]()
    samples: dict[str, list[Sample]] = defaultdict(list)
    # Two rounds: an engine takes as long for a few answers as for many.
    rounds = [part for part in (held[:third], held[third:]) if part]
    total = _answers(len(going), [len(part) for part in rounds])
    done = 0
    for number, part in enumerate(rounds):
        # All candidates at once: an engine decodes many rows in the time of one.
        told = _counted(done, total, progress)
        answers = await asyncio.gather(*(ask(candidate, part, told) for candidate in going))
        done += len(part) * len(going)
        for candidate, found in zip(going, answers, strict=True):
            samples[candidate.name].extend(found)
        going.sort(key=lambda candidate: _rank(samples[candidate.name], primary), reverse=True)
        if number < len(rounds) - 1:
            keep = _survivors(len(going))
            going, out = going[:keep], going[keep:] + out
    return [(candidate, _rank(samples[candidate.name], primary)[0]) for candidate in [*going, *out]]


def _answers(candidates: int, sizes: Sequence[int]) -> int:
    total = 0
    for size in sizes:
        total += candidates * size
        candidates = _survivors(candidates)
    return total


def _survivors(candidates: int) -> int:
    """Those that go on to the last round."""
    return min(candidates, max(2, candidates // 3))


def _counted(done: int, total: int, progress: Progress | None) -> Progress | None:
    """Counts the answers of all candidates together."""
    if progress is None:
        return None
    seen = itertools.count(done + 1)
    return lambda _, __: progress(next(seen), total)


def _rank(samples: Sequence[Sample], primary: str) -> tuple[float, float]:
    """A small model may get no row exactly right; then likeness tells its prompts apart."""
    score = sum(sample.scores.get(primary, 0.0) for sample in samples) / len(samples)
    likeness = sum(chrf(sample.output, sample.reference) for sample in samples) / len(samples)
    return score, likeness


class _Maker:
    """Builds prompts: instruction, examples, then the row, as much of it as fits."""

    def __init__(
        self,
        train: Sequence[Conversation],
        told: str | None,
        count: Count,
        room: int,
        most_added: int,
        seed: int,
    ) -> None:
        self.train, self.instruction, self.most_added = train, told, most_added
        self._count, self._room = count, room
        self._fixed = random.Random(seed).sample(train, min(len(train), 16))
        self._neighbours = Neighbours(train)

    def builder(self, candidate: _Candidate) -> Build:
        """What is sent for a row: as many of the candidate's examples as fit."""

        def build(row: Conversation) -> Sequence[Message]:
            shown = self._shown(candidate, row)
            for shots in range(len(shown), -1, -1):
                messages = self._messages(candidate, shown[:shots], row)
                if self._fits(messages, row):
                    return messages
            return row.prompt

        return build

    def fits(self, candidate: _Candidate, row: Conversation) -> bool:
        """Whether the row has room for the instruction and every example."""
        return self._fits(self._messages(candidate, self._shown(candidate, row), row), row)

    def _fits(self, messages: Sequence[Message], row: Conversation) -> bool:
        tokens = self._count(messages, row.tools)
        added = tokens - self._count(row.prompt, row.tools)
        return tokens <= self._room and added <= self.most_added

    def _shown(self, candidate: _Candidate, row: Conversation) -> list[Conversation]:
        # One more than needed, because a training row is never shown to itself.
        wanted = candidate.shots + 1 if candidate.shots else 0
        if candidate.pick == "nearest":
            found = self._neighbours.nearest(row.prompt, wanted)
        else:
            found = self._fixed[:wanted]
        others = [example for example in found if example.source != row.source]
        return others[: candidate.shots]

    def _messages(
        self, candidate: _Candidate, shown: Sequence[Conversation], row: Conversation
    ) -> list[Message]:
        system = [message for message in row.prompt[:1] if message.role == "system"]
        turns = row.prompt[len(system) :]
        if candidate.instruct and self.instruction is not None:
            said = [message.content for message in system if message.content]
            system = [Message("system", "\n\n".join([*said, self.instruction]))]
        # The nearest example stands last, next to the row.
        order = reversed(shown) if candidate.pick == "nearest" else shown
        examples = [
            message for example in order for message in example.messages if message.role != "system"
        ]
        if examples and candidate.pick == "random":
            examples[-1] = replace(examples[-1], cache=True)
        return [*system, *examples, *turns]


def instruction(train: Sequence[Conversation], task: Task) -> str | None:
    """What the training answers have in common, said in words: the labels, or the JSON's fields."""
    answers = [answer_text(row.answer).strip() for row in train]
    if task == "labels":
        labels = "\n".join(sorted(set(answers)))
        return f"Answer with exactly one of these labels and nothing else:\n{labels}"
    if task != "json":
        return None
    values = [structured.load(text) for text in answers]
    objects = [value for value in values if isinstance(value, dict)]
    if 2 * len(objects) < len(values):
        return "Answer with one JSON array and nothing else."
    keys = Counter(str(key) for value in objects for key in value)
    lines = [
        f"- {key}{'' if seen == len(objects) else ' (optional)'}: "
        + _kind([value[key] for value in objects if key in value])
        for key, seen in keys.most_common(_MOST_KEYS)
    ]
    return "\n".join(["Answer with one JSON object and nothing else. Its fields:", *lines])


def _kind(values: Sequence[object]) -> str:
    """`"a" or "b"` where few values recur, else the JSON types, with an object's keys."""
    plain = [json.dumps(value, ensure_ascii=False, sort_keys=True) for value in values]
    scalar = not any(isinstance(value, dict | list) for value in values)
    if scalar and len(set(plain)) <= min(_MOST_VALUES, max(1, len(plain) // 4)):
        return " or ".join(sorted(set(plain)))
    inner = Counter(str(key) for value in values if isinstance(value, dict) for key in value)
    names = sorted({_type(value) for value in values})
    listed = ", ".join(key for key, _ in inner.most_common(_MOST_KEYS))
    return " or ".join(names) + (f" with any of {listed}" if inner else "")


def _type(value: object) -> str:
    kinds = ((bool, "boolean"), (int | float, "number"), (str, "string"), (list, "array"))
    named = next((name for kind, name in kinds if isinstance(value, kind)), "object")
    return "null" if value is None else named
