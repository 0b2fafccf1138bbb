"""What prompting alone reaches: a search for a prompt on the validation split, within a budget.

Prompts differ in their instruction (the labels or the JSON's fields said in words, a schema, the
form alone, thoughts before the answer, or what a stronger model proposes) and in how many training
rows they show, which and in what order (`prompts.Design`). The search is by successive halving
(Jamieson and Talwalkar 2016, arXiv:1502.07943), in two rounds: all candidates answer a few rows,
the best third answers more. Its budget is a number of answers; as many designs as it bears are
tried, in order of what they promise for their cost.
It sees training and validation rows and nothing else.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from tunesmith.chat import ChatModel, SamplingParams
from tunesmith.data.examples import Conversation
from tunesmith.evaluate import statistics
from tunesmith.evaluate.classical import MOST_ROWS, sample_rows
from tunesmith.evaluate.evaluation import Arm, Build, Progress, Sample, answer, bare
from tunesmith.evaluate.instructions import written
from tunesmith.evaluate.prompts import PROPOSED, Count, Design, Maker, designs
from tunesmith.graders.choose import Task
from tunesmith.graders.grader import Grader
from tunesmith.graders.text import chrf

BUDGET = 80
"""Answers: six prompts on eight rows each, and the best two on sixteen more."""
_ANSWER_ROOM = 256


@dataclass(frozen=True, slots=True)
class Lead:
    """How far the best prompt is before the second on the rows that both answered, with the 95 %
    interval. It was chosen for this lead, which is therefore rather too large than too small."""

    second: str
    difference: float
    low: float
    high: float
    rows: int


@dataclass(frozen=True, slots=True)
class PromptPlan:
    """The prompt that was found.

    Attributes:
        build: the messages for a row.
        tried: each candidate with its mean of the primary metric over the rows it answered.
        left_out: candidates that were not tried, with the reason.
        lead: None where fewer than two candidates were tried.
        answers: how many the search asked for.
    """

    build: Build
    name: str
    description: str
    tried: tuple[tuple[str, float], ...] = ()
    left_out: tuple[str, ...] = ()
    lead: Lead | None = None
    answers: int = 0


@dataclass(frozen=True, slots=True)
class Schedule:
    """How many candidates are tried, and on how many rows the finalists are."""

    candidates: int
    rows: int

    @property
    def rounds(self) -> list[tuple[int, int]]:
        """Candidates and rows of each round: an engine takes as long for a few answers as for many,
        so there are two."""
        third = self.rows // 3
        if not third or not self.candidates:
            return [(self.candidates, self.rows)]
        last = min(self.candidates, max(2, self.candidates // 3))
        return [(self.candidates, third), (last, self.rows - third)]

    @property
    def answers(self) -> int:
        """Answers of all rounds together."""
        return sum(candidates * rows for candidates, rows in self.rounds)


def schedule(budget: int, candidates: int, rows: int, finalists: int = 24) -> Schedule:
    """As many candidates as the budget bears; what it leaves then goes into more rows.

    Args:
        budget: most answers.
        candidates: how many there are.
        rows: how many there are.
        finalists: rows for the last round, while candidates are left out; fewer where two
            candidates would pass the budget.
    """
    usual = min(finalists, rows)
    most = min(candidates, 2)
    if Schedule(most, usual).answers > budget:
        return Schedule(most, budget // max(1, most))
    while most < candidates and Schedule(most + 1, usual).answers <= budget:
        most += 1
    while most == candidates and usual < rows and Schedule(most, usual + 1).answers <= budget:
        usual += 1
    return Schedule(most, usual)


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
    budget: int = BUDGET,
    proposed: Sequence[str] = (),
    concurrency: int = 16,
    progress: Progress | None = None,
    seed: int = 0,
    known: str | None = None,
) -> PromptPlan:
    """The best prompt that the budget can tell, by `primary` and then chrF, on validation rows.

    Args:
        validation: in an order that says nothing: the first are answered.
        params: sampling settings as they will be used for the arm.
        count: tokens of a prompt; with `context`, the model's limit, it keeps prompts that fit.
        most_added: most tokens that instruction and examples may add to a row's own prompt.
        budget: most answers that the model is asked for.
        proposed: instructions from elsewhere, tried beside those that the training rows suggest.
        progress: told after every answer.
        known: name of the prompt that an earlier search found; it is built without asking.
    """
    if not train or not (validation or known):
        why = "no training rows" if not train else "no validation rows"
        return PromptPlan(bare, "bare", f"the bare prompt: {why} to search with")
    maker = _maker(
        train, proposed, count, task=task, seed=seed,
        context=context, most_added=most_added, answer_room=params.max_tokens or _ANSWER_ROOM,
    )  # fmt: skip
    offered = designs(list(maker.instructions), task)
    again = next((design for design in offered if design.name == known), None)
    if again is not None:
        return PromptPlan(maker.builder(again), again.name, again.name)
    candidates, left_out, plan = _affordable(maker, offered, validation, budget)
    if not plan.answers:
        reason = f"the bare prompt: a budget of {budget} answers leaves nothing to search with"
        return PromptPlan(bare, "bare", reason, left_out=left_out)

    async def ask(
        design: Design, rows: Sequence[Conversation], told: Progress
    ) -> tuple[Sample, ...]:
        arm = Arm(design.name, "prompt", model, maker.builder(design))
        return await answer(
            arm, rows, graders, params=params, concurrency=concurrency, progress=told
        )

    ranked, samples = await _halve(candidates, validation, plan, ask, primary, progress)
    best, lead = ranked[0], _lead(ranked, samples, primary, seed)
    tried = tuple((design.name, _rank(samples[design.name], primary)[0]) for design in ranked)
    told = _describe(best, plan, lead, most_added)
    return PromptPlan(maker.builder(best), best.name, told, tried, left_out, lead, plan.answers)


def _maker(
    train: Sequence[Conversation],
    proposed: Sequence[str],
    count: Count,
    *,
    task: Task,
    context: int,
    most_added: int,
    answer_room: int,
    seed: int,
) -> Maker:
    """Makes prompts with the instructions that the training rows suggest and those proposed."""
    examples, _ = sample_rows(train, MOST_ROWS, seed)
    said = written(examples, task, max_tokens=answer_room)
    for number, text in enumerate(proposed, 1):
        # A proposal saw some rows; what all answers have in common is said in any case.
        parts = [text, said.get("instruction", "")]
        said[f"{PROPOSED} {number}"] = "\n\n".join(filter(None, parts))
    room = context - answer_room
    return Maker(examples, said, count, task=task, room=room, most_added=most_added, seed=seed)


def _affordable(
    maker: Maker, offered: Sequence[Design], validation: Sequence[Conversation], budget: int
) -> tuple[list[Design], tuple[str, ...], Schedule]:
    """The first designs that fit, up to what the budget bears; what is left out, with the reason.

    A design fits where all of it has room beside at least half of the rows.
    """
    most = schedule(budget, len(offered), len(validation)).candidates
    rows = validation[:24]
    chosen: list[Design] = []
    reasons = Counter[str]()
    for place, design in enumerate(offered):
        if len(chosen) == most:
            reasons[f"beyond the budget of {budget:,} answers"] = len(offered) - place
            break
        if design.shots > len(maker.train):
            reasons[f"only {len(maker.train)} training rows to show"] += 1
        elif sum(maker.fits(design, row) for row in rows) < len(rows) / 2:
            reasons[f"over {maker.most_added:,} tokens more than the row, or over the context"] += 1
        else:
            chosen.append(design)
    left_out = tuple(f"{count} prompts: {reason}" for reason, count in reasons.items())
    return chosen, left_out, schedule(budget, len(chosen), len(validation))


_Ask = Callable[[Design, Sequence[Conversation], Progress], Awaitable[tuple[Sample, ...]]]


async def _halve(
    candidates: Sequence[Design],
    validation: Sequence[Conversation],
    plan: Schedule,
    ask: _Ask,
    primary: str,
    progress: Progress | None,
) -> tuple[list[Design], dict[str, list[Sample]]]:
    """The candidates, best first, those that lasted longer before the others; and their answers."""
    going, out = list(candidates[: plan.candidates]), list[Design]()
    samples: dict[str, list[Sample]] = defaultdict(list)
    seen = itertools.count(1)

    def tell(_done: int, _of: int) -> None:
        if progress is not None:
            progress(next(seen), plan.answers)

    begin = 0
    for number, rows in plan.rounds:
        out = going[number:] + out
        going = going[:number]
        part = validation[begin : begin + rows]
        begin += rows
        # All candidates at once: an engine decodes many rows in the time of one.
        answers = await asyncio.gather(*(ask(design, part, tell) for design in going))
        for design, found in zip(going, answers, strict=True):
            samples[design.name].extend(found)
        going.sort(key=lambda design: _rank(samples[design.name], primary), reverse=True)
    return [*going, *out], samples


def _rank(samples: Sequence[Sample], primary: str) -> tuple[float, float]:
    """A small model may get no row exactly right; then likeness tells its prompts apart."""
    score = sum(sample.scores.get(primary, 0.0) for sample in samples) / len(samples)
    likeness = sum(chrf(sample.output, sample.reference) for sample in samples) / len(samples)
    return score, likeness


def _lead(
    ranked: Sequence[Design], samples: dict[str, list[Sample]], primary: str, seed: int
) -> Lead | None:
    if len(ranked) < 2:
        return None
    first, second = (samples[design.name] for design in ranked[:2])
    found = statistics.paired(
        [sample.scores.get(primary, 0.0) for sample in first],
        [sample.scores.get(primary, 0.0) for sample in second],
        [sample.cluster for sample in first],
        seed,
    )
    return Lead(ranked[1].name, found.value, found.low, found.high, found.n)


def _describe(best: Design, plan: Schedule, lead: Lead | None, most_added: int) -> str:
    ahead = ""
    if lead is not None:
        span = f"95 % {lead.low:+.2f} to {lead.high:+.2f}"
        ahead = f"; {lead.difference:+.2f} ({span}) against {lead.second}"
    return (
        f"{best.name}: the best of {plan.candidates} prompts on up to {plan.rows} validation rows, "
        f"in {plan.answers} answers{ahead}; fewer examples where they would add over "
        f"{most_added:,} tokens to a row"
    )
