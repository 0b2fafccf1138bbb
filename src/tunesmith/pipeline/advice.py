"""Advice from what a run has measured on the validation rows, the user's facts, and what it costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any

from tunesmith import cost
from tunesmith.advise import APPROACH, Advice, Evidence, Facts, Score
from tunesmith.evaluate import statistics
from tunesmith.evaluate.evaluation import Measured
from tunesmith.recipe import Recipe
from tunesmith.sections import FactsSection

Answers = Mapping[str, Sequence[Mapping[str, Any]]]
"""By kind of arm, each validation row as `answers` keeps it."""
Ask = Callable[[str, Sequence[str]], str]
"""A question in plain words and the answers that are taken (none: a number); "" is unknown."""

QUESTIONS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "knowledge_changes": (
        "How often does what the answers have to know change?",
        ("never", "yearly", "monthly", "weekly", "daily"),
    ),
    "task_frequency": ("How often does the task come up?", ("rare", "daily", "constant")),
    "calls_per_month": ("How many calls a month?", ()),
    "latency_p95": ("Within how many seconds do you want 95 % of the answers?", ()),
    "data_may_leave": ("May the data leave the house, to a provider?", ("yes", "no")),
}
"""The five questions that no data can answer."""


def asked(recipe: Recipe, ask: Ask) -> dict[str, Any]:
    """Recipe keys that answer the questions whose facts are unknown."""
    given = recipe.facts.model_dump()
    open_ones = {key: said for key, said in QUESTIONS.items() if given[key] == "unknown"}
    answers = {key: ask(*said) for key, said in open_ones.items()}
    return {f"facts.{key}": answer for key, answer in answers.items() if answer}


def facts(said: FactsSection) -> Facts:
    """The facts as the advice takes them: unknown is None."""
    leave = {"yes": True, "no": False}.get(said.data_may_leave)
    return Facts(
        knowledge_changes=_known(said.knowledge_changes),
        task_frequency=_known(said.task_frequency),
        calls_per_month=_known(said.calls_per_month),
        latency_p95=_known(said.latency_p95),
        data_may_leave=leave,
    )


def _known(value: Any) -> Any:
    return None if value == "unknown" else value


def answers(measured: Measured, metric: str) -> list[dict[str, Any]]:
    """What the advice needs of an arm's rows, as explore.json keeps it."""
    names = ("id", "cluster", "tokens_in", "tokens_out", "seconds")
    return [
        {**{name: getattr(row, name) for name in names}, "score": row.scores[metric]}
        for row in measured.samples
        if metric in row.scores
    ]


def evidence(
    rows: Answers,
    *,
    metric: str,
    train: int,
    recipe: Recipe,
    doubling: Score | None = None,
    break_even: tuple[float, float] | None = None,
    costs: Sequence[str] = (),
) -> Evidence:
    """Evidence from the arms' answers to the same validation rows.

    Args:
        train: rows to train on.
        doubling: what twice the rows would bring, from a learning curve.
        break_even: calls a month at which tuned costs what the external model costs.
    """
    arms = {kind: found for kind, found in rows.items() if kind in APPROACH and found}
    seconds = {kind: sorted(row["seconds"] for row in found) for kind, found in arms.items()}
    scored = {
        kind: statistics.interval([row["score"] for row in found], [r["cluster"] for r in found])
        for kind, found in arms.items()
    }
    return Evidence(
        metric=metric,
        scores={kind: Score(s.value, s.low, s.high) for kind, s in scored.items()},
        rows=train,
        measured_on=max((s.n for s in scored.values()), default=0),
        leads={(a, b): _lead(arms[a], arms[b]) for a, b in combinations(arms, 2)},
        latency_p95={kind: taken[int(len(taken) * 0.95)] for kind, taken in seconds.items()},
        tokens_in={
            kind: sum(row["tokens_in"] for row in found) / len(found)
            for kind, found in arms.items()
        },
        doubling=doubling,
        goal=recipe.evaluate.goal,
        facts=facts(recipe.facts),
        break_even=break_even,
        costs=costs,
    )


def _lead(a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]]) -> Score:
    theirs = {row["id"]: row["score"] for row in b}
    both = [row for row in a if row["id"] in theirs]
    found = statistics.paired(
        [row["score"] for row in both],
        [theirs[row["id"]] for row in both],
        [row["cluster"] for row in both],
    )
    return Score(found.value, found.low, found.high)


def entry(advice: Advice) -> dict[str, Any]:
    """An advice as report.json has it."""
    return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(advice).items()}


def training_costs(planned: Mapping[str, Any], said: FactsSection) -> list[str]:
    """What training here would take, as a sentence, from forecast.json."""
    if "seconds" not in planned:
        return []
    seconds = cost.Amount.of(planned["seconds"])
    usd = cost.here(seconds, _known(said.usd_per_hour)).usd
    text = f"Forecast: training takes {cost.minutes(seconds)} here"
    return [text + (f", US$ {usd.value:.2g}." if usd.value is not None else ".")]
