"""What people decide by, for a run's report: figures beside the graders, the judge, the goal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from tunesmith.chat import answer_text
from tunesmith.data.examples import Conversation
from tunesmith.endpoint import open_endpoint
from tunesmith.errors import EngineError
from tunesmith.evaluate import judge as judging
from tunesmith.evaluate import practical
from tunesmith.evaluate.comparison import goal_reached
from tunesmith.evaluate.evaluation import Arm, Measured, Sample, answer
from tunesmith.pipeline.begin import Screen
from tunesmith.pipeline.external import answers_folder
from tunesmith.pipeline.folder import RunFolder, unmeasured
from tunesmith.pipeline.measure import Bench
from tunesmith.recipe import Recipe
from tunesmith.sections import Judge

JUDGEMENTS = "judgements.jsonl"
ALONE_ROWS = 6
ALONE = ("base", "tuned", "rag", "rag+tuned")
"""Arms that are also timed with one row at a time."""


@dataclass(frozen=True, slots=True)
class Beside:
    """Parts of report.json: of each arm by its name, and of the whole."""

    arms: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Any])
    whole: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def joined(self, report: Mapping[str, Any]) -> dict[str, Any]:
        """The report with these parts."""
        arms = [{**arm, **self.arms.get(arm["name"], {})} for arm in report["arms"]]
        return {**report, "arms": arms, **self.whole}


async def beside(
    bench: Bench,
    arms: Sequence[Arm],
    measured: Mapping[str, Measured],
    rows: Sequence[Conversation],
    recipe: Recipe,
    folder: RunFolder,
    screen: Screen,
    *,
    rows_at_once: int,
) -> Beside:
    """All that this module measures, once the arms have answered the test rows."""
    alone: dict[str, Sequence[Sample]] = {}
    for arm in arms:
        if arm.kind in ALONE:
            alone[arm.name] = await _alone(bench, arm, rows[:ALONE_ROWS])
    task = bench.chosen.task
    labels = practical.labels_of([answer_text(row.answer) for row in bench.train], task)
    base, prompt = measured.get("base"), measured.get("prompt")
    parts = {
        name: {
            "practical": practical.entry(one, task=task, labels=labels, base=base, prompt=prompt),
            "latency": practical.latency(min(rows_at_once, len(rows)), alone.get(name, ())),
        }
        for name, one in measured.items()
    }
    primary = bench.chosen.primary
    judged = await _judged(recipe.judge, measured, primary, folder, screen)
    return Beside(parts, {"judge": judged, "goal": _goal(measured, primary, recipe.evaluate.goal)})


async def _alone(bench: Bench, arm: Arm, rows: Sequence[Conversation]) -> Sequence[Sample]:
    return await answer(
        replace(arm, scorer=None),
        rows,
        (),
        params=bench.params,
        concurrency=1,
        progress=lambda done, total: bench.told(f"{arm.name}, one row at a time", done, total),
    )


def _goal(measured: Mapping[str, Measured], primary: str, goal: float | None) -> dict[str, Any]:
    """Which arms reach the goal: "reached" with the whole interval, "may be chance", "not reached"."""
    if goal is None:
        return unmeasured("evaluate.goal names none")
    reached = {name: goal_reached(arm.scores[primary], goal) for name, arm in measured.items()}
    return {"metric": primary, "goal": goal, "arms": reached}


async def _judged(
    judge: Judge | None,
    measured: Mapping[str, Measured],
    primary: str,
    folder: RunFolder,
    screen: Screen,
) -> dict[str, Any]:
    """The part `judge`: tuned against the base and against the best other arm.

    A judge that breaks off costs the run its judgements and nothing else.
    """
    if judge is None:
        return unmeasured("judge.base_url names none")
    rivals = opponents(measured, primary)
    if not rivals:
        return unmeasured("the tuned arm, or one to hold it against, was left out")
    tuned, found, lines = measured["tuned"], list[dict[str, Any]](), list[dict[str, Any]]()
    async with open_endpoint(judge, "judge", answers_folder()) as model:
        for rival in rivals:
            rows = judging.pairs(tuned.samples, rival.samples, judge.rows)
            name = f"judging tuned and {rival.arm}"
            try:
                said = await judging.judge(
                    model,
                    rows,
                    rubric=judge.rubric,
                    progress=lambda done, total, name=name: screen.progress(name, done, total),
                )
            except EngineError as error:
                screen.say(f"the judge broke off: {error}")
                return unmeasured(f"the judge broke off: {error}")
            found.append(judging.summary(said, tuned.arm, rival.arm))
            for item in said:
                line = asdict(item)
                del line["cluster"]
                lines.append({"a": tuned.arm, "b": rival.arm, **line})
    folder.write_lines(JUDGEMENTS, lines)
    return {"model": judge.model, "rubric": judge.rubric, "pairs": found}


def opponents(measured: Mapping[str, Measured], primary: str) -> list[Measured]:
    """What the tuned arm is held against by a judge: the base, and the best other arm."""
    if "tuned" not in measured:
        return []
    others = [arm for name, arm in measured.items() if name not in ("tuned", "base")]
    best = max(others, key=lambda arm: arm.scores[primary].value, default=None)
    return [arm for arm in (measured.get("base"), best) if arm is not None]
