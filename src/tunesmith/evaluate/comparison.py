"""Arms against each other on the rows both answered, the noise floor, and the verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

from tunesmith.errors import UsageError
from tunesmith.evaluate import statistics
from tunesmith.evaluate.evaluation import ArmKind, Measured
from tunesmith.evaluate.statistics import Interval
from tunesmith.graders.choose import Task


@dataclass(frozen=True, slots=True)
class Comparison:
    """a - b on one metric over `n` rows, with its 95 % interval and two-sided p-value.

    Attributes:
        p_adjusted: p for as many comparisons as were made beside it; see `compare_all`.
    """

    a: str
    b: str
    metric: str
    difference: float
    low: float
    high: float
    p: float
    n: int
    p_adjusted: float


@dataclass(frozen=True, slots=True)
class Noise:
    """How far one model is from itself when measured again.

    Attributes:
        difference: of the metric between the two measurements, absolute.
        changed: share of rows whose answer is not the same text.
    """

    metric: str
    difference: float
    changed: float
    n: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the tuned model is worth shipping, in one sentence with its numbers."""

    ship: bool
    sentence: str


def compare(a: Measured, b: Measured, metric: str, *, seed: int = 0) -> Comparison:
    """a - b on a metric of a row, over the rows that both answered, matched by id.

    Raises:
        UsageError: no row has the metric in both, as is so for a metric of a whole set of rows.
    """
    theirs = {sample.id: sample for sample in b.samples if metric in sample.scores}
    mine = [s for s in a.samples if metric in s.scores and s.id in theirs]
    if not mine:
        raise UsageError(
            f"{a.arm} and {b.arm} have no row in common that is scored by {metric}",
            expected="a metric of single rows, and the same rows in both",
        )
    result = statistics.paired(
        [sample.scores[metric] for sample in mine],
        [theirs[sample.id].scores[metric] for sample in mine],
        [sample.cluster for sample in mine],
        seed,
    )
    return Comparison(
        a.arm, b.arm, metric, result.value, result.low, result.high, result.p, result.n, result.p
    )


def compare_all(arms: Sequence[Measured], metric: str, *, seed: int = 0) -> list[Comparison]:
    """Every pair of arms, earlier ones first, with p adjusted for their number.

    Raises:
        UsageError: as `compare`.
    """
    pairs = [compare(a, b, metric, seed=seed) for a, b in combinations(arms, 2)]
    adjusted = holm([pair.p for pair in pairs])
    return [replace(pair, p_adjusted=p) for pair, p in zip(pairs, adjusted, strict=True)]


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted so that among true nulls one below 0.05 comes up in 5 % of families.

    The step-down procedure of Holm (1979, Scandinavian Journal of Statistics 6, 65-70), which
    holds however the tests depend on each other.
    """
    adjusted, least = [0.0] * len(p_values), 0.0
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    for rank, i in enumerate(order):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = least
    return adjusted


def noise_floor(first: Measured, second: Measured, metric: str) -> Noise:
    """Two measurements of one model, the second in another order and batch size."""
    found = compare(first, second, metric)
    again = {sample.id: sample.output for sample in second.samples}
    both = [sample for sample in first.samples if sample.id in again]
    changed = sum(sample.output != again[sample.id] for sample in both) / len(both)
    return Noise(metric, abs(found.difference), changed, found.n)


def verdict(
    tuned: Measured,
    base: Measured | None,
    others: Sequence[Measured],
    comparisons: Sequence[Comparison],
    *,
    metric: str,
    task: Task,
    goal: float | None = None,
    noise: Noise | None = None,
    external: Measured | None = None,
    may_leave: bool = False,
) -> Verdict:
    """Ship it, or don't, in one sentence.

    It is a no, by the first reason that holds: there is no base to compare with; the gain over it
    may be chance (its interval reaches zero, or p, adjusted for the arms compared, is 0.05 or
    more), or is within the noise floor; another arm does as well (tuned's lead over it fails the
    same two tests), or does better where that arm is trained too; the goal is not reached. What
    does as well is named to be used instead, and also where tuned
    gains nothing while that gains over the base; but where tuned leads, and some more rows would
    tell whether by chance, the sentence asks for these.

    Args:
        others: the arms that could be used instead: prompting, the classical arm, retrieval.
        comparisons: every pair of arms on `metric`, in any direction.
        goal: value of `metric` to reach.
        external: told beside the others; used instead where it does better and rows `may_leave`.
    """
    tried = [arm for arm in (base, *others, external) if arm is not None]
    facts = _facts(tuned, tried, comparisons, metric, task)
    reached, tail = _answer(tuned.scores[metric], goal)
    if base is None:
        return Verdict(False, f"No verdict: {facts}, and the base was not measured{tail}.")
    gain = _difference(comparisons, tuned, base, metric)
    if external is not None and may_leave and _leads(external, tuned, comparisons, metric, noise):
        return Verdict(False, f"Use the external model instead: {facts}{tail}.")
    rivals = sorted(others, key=lambda arm: -arm.scores[metric].value)
    gained = _doubt(gain, noise) is None
    for arm in rivals:
        lead = _difference(comparisons, tuned, arm, metric)
        trained = arm.kind == "rag+tuned"
        if trained and lead.high >= 0:
            continue
        worth = gained or _doubt(_difference(comparisons, arm, base, metric), noise) is None
        if worth and _doubt(lead, noise) is not None:
            name = _name(arm.kind, task)
            needed = _rows_that_tell(lead)
            if gained and needed is not None:
                asked = f"; the lead over {name}, untrained, may be chance"
                return Verdict(
                    False,
                    f"Do not ship it yet: {facts}{asked}: about {needed} test rows would tell{tail}.",
                )
            how = "better" if lead.high < 0 else "as well"
            how += "" if trained else ", untrained"
            return Verdict(False, f"Use {name} instead: {facts}; {name} does {how}{tail}.")
    doubt = _doubt(gain, noise)
    if doubt is not None:
        return Verdict(False, f"Do not ship it: {facts}; {doubt}{tail}.")
    if reached == "not reached":
        return Verdict(False, f"Do not ship it: {facts}{tail}.")
    return Verdict(True, f"Ship it: {facts}{tail}.")


Reached = Literal["reached", "may be chance", "not reached"]


def goal_reached(score: Interval, goal: float) -> Reached:
    """Whether a score reaches a goal: with its whole interval, with its value only, or not."""
    if score.value < goal:
        return "not reached"
    return "reached" if score.low >= goal else "may be chance"


def _answer(score: Interval, goal: float | None) -> tuple[Reached | None, str]:
    """Whether the goal is reached, and the end of the sentence that says so."""
    if goal is None:
        return None, ""
    reached = goal_reached(score, goal)
    doubt = ", but that may be chance" if reached == "may be chance" else ""
    said = "not reached" if reached == "not reached" else f"reached{doubt}"
    return reached, f"; the goal of {goal:g} is {said} (95 % {score.low:.2f} to {score.high:.2f})"


def _difference(
    comparisons: Sequence[Comparison], a: Measured, b: Measured, metric: str
) -> Comparison:
    for found in comparisons:
        if found.metric == metric and (found.a, found.b) == (a.arm, b.arm):
            return found
        if found.metric == metric and (found.a, found.b) == (b.arm, a.arm):
            return replace(
                found,
                a=a.arm,
                b=b.arm,
                difference=-found.difference,
                low=-found.high,
                high=-found.low,
            )
    return compare(a, b, metric)


def _leads(
    a: Measured, b: Measured, comparisons: Sequence[Comparison], metric: str, noise: Noise | None
) -> bool:
    return _doubt(_difference(comparisons, a, b, metric), noise) is None


def _doubt(gain: Comparison, noise: Noise | None) -> str | None:
    """Why the gain does not count, or None where it does."""
    if gain.high < 0:
        return f"it does worse than {gain.b}"
    if gain.low <= 0:
        return f"the gain over {gain.b} may be chance (p = {gain.p:.2g})"
    if gain.p_adjusted >= 0.05:
        few = f"{gain.n} rows are too few to rule out chance"
        if gain.p >= 0.05:
            return f"{few} (p = {gain.p:.2g})"
        return f"{few} among so many arms (p = {gain.p:.2g}, adjusted {gain.p_adjusted:.2g})"
    if noise is not None and gain.difference <= noise.difference:
        return f"the base differs from itself by {noise.difference:.2f} when measured again"
    return None


MOST_MORE = 4
"""Times the rows that were measured: a lead that would need more of them is none to wait for."""


def _rows_that_tell(lead: Comparison) -> int | None:
    """Rows on which a lead of this size would stand clear of zero, in tens; None for no such lead.

    An interval narrows with the root of the rows.
    """
    if lead.difference <= 0 or lead.low > 0:
        return None
    needed = lead.n * ((lead.difference - lead.low) / lead.difference) ** 2
    return math.ceil(needed / 10) * 10 if needed <= MOST_MORE * lead.n else None


def _name(kind: ArmKind, task: Task) -> str:
    if kind == "classical":
        return "the classifier" if task == "labels" else "the nearest training row"
    return {
        "base": "the base",
        "prompt": "prompting alone",
        "rag": "retrieval alone",
        "tuned": "tuned",
        "rag+tuned": "retrieval with a model tuned for it",
        "external": "the external model",
    }[kind]


def _facts(
    tuned: Measured,
    others: Sequence[Measured],
    comparisons: Sequence[Comparison],
    metric: str,
    task: Task,
) -> str:
    score = tuned.scores[metric]
    rows = f"{score.n:,} unseen rows"
    if metric != "exact":
        text = f"tuned reaches {metric} {score.value:.2f} on {rows}"
    elif task in ("json", "calls"):
        what = "values" if task == "json" else "calls"
        text = f"tuned gives the reference's {what} on {score.value:.2f} of {rows}"
    else:
        text = f"tuned answers {score.value:.2f} of {rows} exactly as the reference"
    parts: list[str] = []
    for arm in others:
        found = _difference(comparisons, tuned, arm, metric)
        span = f"{'' if parts else '95 % '}{found.low:.2f} to {found.high:.2f}"
        parts.append(
            f"{arm.scores[metric].value:.2f} for {_name(arm.kind, task)}"
            f" ({found.difference:+.2f}, {span})"
        )
    if not parts:
        return text
    listed = " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
    return f"{text} against {listed}"
