"""Arms answer the same rows; graders score what they wrote."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from tunesmith.chat import (
    CALL_OPEN,
    ChatModel,
    Completion,
    FinishReason,
    Message,
    SamplingParams,
    TextScorer,
    answer_text,
)
from tunesmith.data.examples import Conversation
from tunesmith.evaluate import statistics
from tunesmith.evaluate.statistics import Interval
from tunesmith.graders.grader import Grader

ArmKind = Literal["base", "classical", "prompt", "rag", "tuned", "rag+tuned", "external"]
Build = Callable[[Conversation], Sequence[Message]]
"""What is sent for a row."""
Read = Callable[[Conversation, str], Awaitable["Answered"]]
"""What is graded of what was written for a row."""
Progress = Callable[[int, int], None]
"""Told after every row: how many are done, and of how many."""
T = TypeVar("T")
R = TypeVar("R")


def bare(row: Conversation) -> Sequence[Message]:
    """The row's own prompt and nothing else."""
    return row.prompt


@dataclass(frozen=True, slots=True)
class Arm:
    """One way of answering that is under test.

    Attributes:
        build: the messages sent for a row; the row's own prompt unless told otherwise.
        scorer: says how likely the reference is; None leaves `logprob` out.
        read: takes off what is not to be graded; None grades all.
    """

    name: str
    kind: ArmKind
    model: ChatModel
    build: Build = bare
    scorer: TextScorer | None = None
    read: Read | None = None


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer to be graded, FILE:LINE of what it cites, and the passages that it was shown."""

    text: str
    cited: tuple[str, ...] = ()
    passages: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer, scored.

    Attributes:
        id: FILE:LINE of the row, with #2, #3... where a file's line gave several rows.
        prompt: the last user turn.
        seconds: wall time of the request; of an answer that was kept, that of the first time.
        cluster: the same for rows whose whole prompt is the same.
        cited: FILE:LINE of each passage that the answer cites.
        passages: the passages that the model was shown.
    """

    id: str
    prompt: str
    reference: str
    output: str
    scores: Mapping[str, float]
    tokens_in: int
    tokens_out: int
    seconds: float
    finish_reason: FinishReason
    cluster: str = ""
    cited: tuple[str, ...] = ()
    passages: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Measured:
    """An arm's answers and, for each metric, its value over them with an interval."""

    arm: str
    kind: ArmKind
    samples: tuple[Sample, ...]
    scores: Mapping[str, Interval]


async def evaluate(
    arm: Arm,
    examples: Sequence[Conversation],
    graders: Sequence[Grader],
    *,
    params: SamplingParams,
    concurrency: int = 16,
    progress: Progress | None = None,
    seed: int = 0,
) -> Measured:
    """The arm's answers to all examples, scored; samples are in the order of the examples.

    Args:
        params: sampling settings, `max_tokens` among them.
        concurrency: requests under way at once; a local engine batches them.
        seed: of the bootstrap.

    Raises:
        EngineError: whatever the model raised for a row; the other requests are cancelled.
    """
    samples = await answer(
        arm, examples, graders, params=params, concurrency=concurrency, progress=progress
    )
    return Measured(arm.name, arm.kind, samples, summarise(samples, graders, seed))


async def answer(
    arm: Arm,
    examples: Sequence[Conversation],
    graders: Sequence[Grader],
    *,
    params: SamplingParams,
    concurrency: int = 16,
    progress: Progress | None = None,
) -> tuple[Sample, ...]:
    """As `evaluate`, without the summary."""
    named = list(zip(examples, row_ids(examples), strict=True))
    samples = await each(
        named,
        lambda pair: _answer_row(arm, *pair, graders, params),
        concurrency=concurrency,
        progress=progress,
    )
    return tuple(samples)


async def each(
    items: Sequence[T],
    work: Callable[[T], Awaitable[R]],
    *,
    concurrency: int,
    progress: Progress | None = None,
) -> list[R]:
    """The work's results in the order of the items, so many under way at once.

    Where one fails the others are cancelled.
    """
    slots, done = asyncio.Semaphore(concurrency), 0

    async def one(item: T) -> R:
        nonlocal done
        async with slots:
            result = await work(item)
        done += 1
        if progress is not None:
            progress(done, len(items))
        return result

    tasks = [asyncio.create_task(one(item)) for item in items]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


async def _answer_row(
    arm: Arm, row: Conversation, name: str, graders: Sequence[Grader], params: SamplingParams
) -> Sample:
    messages, reference = arm.build(row), answer_text(row.answer)
    start = time.perf_counter()
    completion = await arm.model.complete(messages, params, row.tools)
    seconds = completion.seconds if completion.kept else time.perf_counter() - start
    answered = Answered(written(completion))
    if arm.read is not None:
        answered = await arm.read(row, answered.text)
    output = answered.text
    scores: dict[str, float] = {}
    for grader in graders:
        scores.update(grader.grade(output, reference))
    if arm.scorer is not None:
        logprobs = await arm.scorer.logprobs(messages, row.answer, row.tools)
        scores["logprob"] = sum(logprobs) / len(logprobs)
    users = [message.content or "" for message in row.prompt if message.role == "user"]
    return Sample(
        id=name,
        prompt=users[-1] if users else "",
        reference=reference,
        output=output,
        scores=scores,
        tokens_in=completion.usage.prompt_tokens,
        tokens_out=completion.usage.completion_tokens,
        seconds=seconds,
        finish_reason=completion.finish_reason,
        cluster=hashlib.sha256(repr(row.prompt).encode()).hexdigest()[:16],
        cited=answered.cited,
        passages=answered.passages,
    )


def written(completion: Completion) -> str:
    """All that the model wrote as one text, calls in the form of `chat.write_tool_calls`."""
    if completion.tool_calls and CALL_OPEN not in completion.text:
        return answer_text(Message("assistant", completion.text, tool_calls=completion.tool_calls))
    return completion.text


def row_ids(examples: Sequence[Conversation]) -> list[str]:
    """FILE:LINE of each row; several rows of one line are numbered by content, not by position."""
    places = [f"{row.source.file}:{row.source.line}" for row in examples]
    if len(set(places)) == len(places):
        return places
    groups: dict[str, list[int]] = defaultdict(list)
    for i, place in enumerate(places):
        groups[place].append(i)
    for place, members in groups.items():
        members.sort(key=lambda i: (len(examples[i].messages), repr(examples[i].messages)))
        for number, i in enumerate(members[1:], start=2):
            places[i] = f"{place}#{number}"
    return places


def summarise(
    samples: Sequence[Sample], graders: Sequence[Grader], seed: int = 0
) -> dict[str, Interval]:
    """Each metric over the samples that have it; rows that repeat a prompt are one cluster."""
    scores: dict[str, Interval] = {}
    for metric in Counter(metric for sample in samples for metric in sample.scores):
        rows = [sample for sample in samples if metric in sample.scores]
        values = [sample.scores[metric] for sample in rows]
        scores[metric] = statistics.interval(values, [row.cluster for row in rows], seed)
    clusters = [sample.cluster for sample in samples]
    for grader in graders:
        for corpus in grader.corpus if samples else ():
            counts = corpus.counts([s.output for s in samples], [s.reference for s in samples])
            scores[corpus.name] = statistics.corpus_interval(counts, corpus.value, clusters, seed)
    return scores
