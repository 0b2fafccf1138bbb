"""Prompting, RAG, fine-tuning, both, or more data first: a pure function from evidence to advice.

What was measured decides; the field's rules of thumb are priors that decide only where nothing was
measured, and stand beside it elsewhere. The simpler way wins a tie. Five facts that no data can
show may turn the advice, and then a reason says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

Approach = Literal["prompting", "rag", "fine-tuning", "rag+fine-tuning", "more-data"]
SIMPLEST: tuple[Approach, ...] = ("prompting", "rag", "fine-tuning", "rag+fine-tuning")
"""The simpler before the less simple."""
APPROACH: Mapping[str, Approach] = {
    **dict.fromkeys(("base", "prompt", "classical", "external"), "prompting"),
    "rag": "rag",
    "tuned": "fine-tuning",
    "rag+tuned": "rag+fine-tuning",
}
"""What each kind of arm is an instance of; the classical one is no training of a model either."""
FEW_ROWS = 100
"""Under about this many good rows prompting usually wins: a rule of thumb of the field."""
NEARLY = 0.95
"""A score from which training has little left to win."""
BELIEVED = 20
"""Rows on which a lead has to be measured to be one."""
WORTH = 0.1
"""A lead, at the low end of its interval, that is worth the upkeep of a task that is rare."""
RARE, MANY = 30, 100_000
"""Calls a month below which a task is rare, and from which it is constant."""


@dataclass(frozen=True, slots=True)
class Score:
    """A metric, or the difference of two arms in it, with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


@dataclass(frozen=True, slots=True)
class Facts:
    """What only the user knows; None is unknown.

    Attributes:
        knowledge_changes: never, yearly, monthly, weekly, daily.
        task_frequency: rare, daily, constant.
        latency_p95: seconds in which 95 % of the answers are wanted.
        data_may_leave: whether others may see it.
    """

    knowledge_changes: str | None = None
    task_frequency: str | None = None
    calls_per_month: float | None = None
    latency_p95: float | None = None
    data_may_leave: bool | None = None


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that the advice follows from.

    Attributes:
        scores: the metric of each arm that was measured, by its kind.
        rows: rows to train on.
        measured_on: validation rows behind the scores.
        leads: paired differences a - b by (a, b); for other pairs intervals must not overlap.
        latency_p95: seconds, by arm.
        tokens_in: mean tokens of a prompt, by arm.
        doubling: what twice the rows would bring, where a learning curve was measured.
        goal: the metric's value that the user wants.
        break_even: calls a month (low, high) at which tuned costs what the external model costs.
        costs: sentences about money and time, told as they are.
    """

    metric: str
    scores: Mapping[str, Score]
    rows: int
    measured_on: int
    leads: Mapping[tuple[str, str], Score] = field(default_factory=dict[tuple[str, str], Score])
    latency_p95: Mapping[str, float] = field(default_factory=dict[str, float])
    tokens_in: Mapping[str, float] = field(default_factory=dict[str, float])
    doubling: Score | None = None
    goal: float | None = None
    facts: Facts = Facts()
    break_even: tuple[float, float] | None = None
    costs: Sequence[str] = ()

    def lead(self, a: str, b: str) -> Score:
        """a - b; without a paired difference, the widest that the two intervals allow."""
        if (a, b) in self.leads:
            return self.leads[a, b]
        if (b, a) in self.leads:
            found = self.leads[b, a]
            return Score(-found.value, -found.high, -found.low)
        x, y = self.scores[a], self.scores[b]
        return Score(x.value - y.value, x.low - y.high, x.high - y.low)

    def leads_by(self, a: str, b: str, least: float = 0.0) -> bool:
        """Whether a is ahead of b by more than chance, on rows enough to say so."""
        return self.measured_on >= BELIEVED and self.lead(a, b).low > least

    @property
    def best(self) -> dict[Approach, str]:
        """The best arm of each approach; of equals the first."""
        found: dict[Approach, str] = {}
        for arm, score in self.scores.items():
            kind = APPROACH[arm]
            if kind not in found or score.value > self.scores[found[kind]].value:
                found[kind] = arm
        return found


@dataclass(frozen=True, slots=True)
class Advice:
    """What to do, and why: each reason is a sentence with its numbers.

    Attributes:
        facts: reasons that follow from what the user said.
        priors: rules of thumb that bear on the case, whether or not they decided.
    """

    approach: Approach
    reasons: tuple[str, ...]
    facts: tuple[str, ...] = ()
    priors: tuple[str, ...] = ()


def advise(evidence: Evidence) -> Advice:
    """Advice from the validation rows, the facts and the priors; the test rows have no say."""
    approach, reasons, said = _decide(evidence)
    turned: list[str] = []
    for name in Facts.__dataclass_fields__:
        if getattr(evidence.facts, name) is None:
            continue
        without = replace(evidence, facts=replace(evidence.facts, **{name: None}))
        other, _, _ = _decide(without)
        told = said.get(name)
        if other != approach:
            told = f"{told or _named(name)} This turns the advice from {other} to {approach}."
        if told:
            turned.append(f"You said: {told}")
    scores = ", ".join(f"{name} {score}" for name, score in evidence.scores.items())
    first = f"Measured: {evidence.metric} on {evidence.measured_on} validation rows: {scores}."
    if not evidence.scores:
        first = "Nothing was measured: there are no validation rows, or no arm to measure."
    whole = (first, *reasons, *turned, *_doubts(evidence, approach), *evidence.costs)
    return Advice(approach, whole, tuple(turned), _priors(evidence, approach))


def _named(fact: str) -> str:
    return f"{fact.replace('_', ' ')} is known."


Said = dict[str, str]


def _decide(evidence: Evidence) -> tuple[Approach, list[str], Said]:
    """The approach, its reasons, and what each fact had to say."""
    said: Said = {}
    allowed = _allowed(evidence, said)
    approach, reasons = _measured(allowed)
    for rule in (_knowledge, _frequency, _volume):
        approach = rule(allowed, approach, said)
    return approach, reasons, said


def _allowed(evidence: Evidence, said: Said) -> Evidence:
    """The evidence without the arms that a fact rules out."""
    out: set[str] = set()
    facts, wanted = evidence.facts, evidence.facts.latency_p95
    if facts.data_may_leave is False and "external" in evidence.scores:
        said["data_may_leave"] = "the data may not leave, which rules the external model out."
        out.add("external")
    if wanted is not None:
        late = {arm: s for arm, s in evidence.latency_p95.items() if s > wanted}
        times = ", ".join(f"{arm} takes {s:.2g} s" for arm, s in late.items())
        if late and set(evidence.scores) - out <= set(late):
            said["latency_p95"] = f"95 % of answers within {wanted:g} s; no arm is: {times}."
        elif late:
            said["latency_p95"] = f"95 % of answers within {wanted:g} s; too late are: {times}."
            out |= set(late)
    kept = {arm: score for arm, score in evidence.scores.items() if arm not in out}
    return replace(evidence, scores=kept)


def _measured(evidence: Evidence) -> tuple[Approach, list[str]]:
    """What the scores say: the simplest way that leads the simpler ones and is led by none."""
    best = evidence.best
    plain = best.get("prompting", best.get("rag"))
    ahead: list[Approach] = [
        kind
        for kind in SIMPLEST[1:]
        if kind in best and plain is not None and evidence.leads_by(best[kind], plain)
    ]
    for kind in ahead:
        rivals = [best[other] for other in ahead if other != kind]
        if not any(evidence.leads_by(rival, best[kind]) for rival in rivals):
            lead = evidence.lead(best[kind], plain or "")
            return kind, [f"Measured: {best[kind]} leads {plain}, the simpler way, by {lead}."]
    trained = [best[kind] for kind in SIMPLEST[2:] if kind in best]
    if trained and plain is not None:
        return _no_lead(evidence, plain, max(trained, key=lambda arm: evidence.scores[arm].value))
    return _untrained(evidence)


def _no_lead(evidence: Evidence, plain: str, tuned: str) -> tuple[Approach, list[str]]:
    """Training was measured, and leads nothing."""
    lead, more = evidence.lead(tuned, plain), evidence.doubling
    if more is not None and more.low > 0 and lead.value + more.value > 0:
        told = f"Measured: {tuned} - {plain} is {lead}; twice the rows would bring {more}."
        return "more-data", [told]
    if lead.value > 0 and evidence.rows < FEW_ROWS:
        told = f"Measured: {tuned} - {plain} is {lead}, which may be chance on so few rows."
        return "more-data", [told, _few(evidence)]
    if lead.value > 0:
        told = f"Measured: {tuned} - {plain} is {lead}, which may be chance"
    else:
        told = f"Measured: {plain} does as well as {tuned} ({plain} - {tuned} is "
        told += f"{evidence.lead(plain, tuned)})"
    told += f"; the simpler way wins a tie, and {plain} needs no training."
    return APPROACH[plain], [told]


def _untrained(evidence: Evidence) -> tuple[Approach, list[str]]:
    """Training was not measured: a score that is good enough, or else the priors."""
    enough = NEARLY if evidence.goal is None else evidence.goal
    for kind, arm in evidence.best.items():
        score = evidence.scores[arm]
        if kind in SIMPLEST[:2] and score.value >= enough:
            told = f"Measured: {arm} already reaches {score.value:.2f}"
            told += (
                ": training has little to win." if evidence.goal is None else ", which is wanted."
            )
            return kind, [told]
    if evidence.rows < FEW_ROWS:
        return "more-data", [_few(evidence)]
    told = f"Rule of thumb: {evidence.rows:,} rows are enough to try training; whether it leads is "
    return "fine-tuning", [told + "not measured yet."]


def _few(evidence: Evidence) -> str:
    told = f"Rule of thumb: under about {FEW_ROWS} good rows prompting usually wins; there are "
    return told + f"{evidence.rows:,} to train on."


def _knowledge(evidence: Evidence, approach: Approach, said: Said) -> Approach:
    """Facts that change are looked up, not trained."""
    often, best = evidence.facts.knowledge_changes, evidence.best
    if often not in ("weekly", "daily"):
        return approach
    said["knowledge_changes"] = (
        f"the knowledge changes {often}: what is trained is soon out of date"
    )
    said["knowledge_changes"] += ", so facts are to be looked up (--docs)."
    if approach == "fine-tuning" and not (
        {"fine-tuning", "rag+fine-tuning"} <= set(best)
        and evidence.leads_by(best["fine-tuning"], best["rag+fine-tuning"])
    ):
        return "rag+fine-tuning"
    if approach == "prompting" and "rag" in best:
        behind = evidence.leads_by(best.get("prompting", best["rag"]), best["rag"])
        return approach if behind else "rag"
    return approach


def _frequency(evidence: Evidence, approach: Approach, said: Said) -> Approach:
    """A rare task does not pay for a model's upkeep; a constant one pays for a long prompt."""
    facts, best = evidence.facts, evidence.best
    calls = facts.calls_per_month
    key = "task_frequency" if facts.task_frequency else "calls_per_month"
    rare = facts.task_frequency == "rare" or (calls is not None and calls < RARE)
    many = facts.task_frequency == "constant" or (calls is not None and calls >= MANY)
    plain, tuned = best.get("prompting"), best.get(approach)
    if rare and approach in SIMPLEST[2:]:
        big = plain is not None and tuned is not None and evidence.leads_by(tuned, plain, WORTH)
        said[key] = "the task is rare, and a model of its own wants upkeep"
        said[key] += "; the lead is worth that." if big else " that a rare task does not pay back."
        if not big:
            return "rag" if approach == "rag+fine-tuning" and "rag" in best else "prompting"
    tuned = best.get("fine-tuning")
    if many and approach == "prompting" and plain is not None and tuned is not None:
        ours, theirs = (evidence.tokens_in.get(arm) for arm in (tuned, plain))
        if ours and theirs and 2 * ours <= theirs and not evidence.leads_by(plain, tuned):
            said[key] = (
                f"the task comes all the time, and {plain} reads {theirs:,.0f} tokens a call "
            )
            said[key] += f"where {tuned} reads {ours:,.0f} and does as well."
            return "fine-tuning"
    return approach


def _volume(evidence: Evidence, approach: Approach, said: Said) -> Approach:
    """Between a tuned small model and a hosted one, the calls a month decide a tie."""
    calls, between, best = evidence.facts.calls_per_month, evidence.break_even, evidence.best
    plain, tuned = best.get("prompting"), best.get("fine-tuning")
    if calls is None or between is None or plain != "external" or tuned is None:
        return approach
    low, high = between
    said["calls_per_month"] = f"{calls:,.0f} calls a month; tuned and {plain} cost the same at "
    said["calls_per_month"] += f"{low:,.0f} to {high:,.0f}."
    if approach == "prompting" and calls > high and not evidence.leads_by(plain, tuned):
        return "fine-tuning"
    if approach == "fine-tuning" and calls < low and not evidence.leads_by(tuned, plain, WORTH):
        return "prompting"
    return approach


def _doubts(evidence: Evidence, approach: Approach) -> list[str]:
    """What the advice hangs on: rows too few to tell, and a fact that was not said."""
    told: list[str] = []
    if evidence.scores and evidence.measured_on < BELIEVED:
        told.append(f"Measured on fewer than {BELIEVED} rows, no lead can be told from chance.")
    facts = evidence.facts
    if facts.data_may_leave is None and "external" in evidence.scores:
        staying = replace(evidence, facts=replace(facts, data_may_leave=False))
        other, _, _ = _decide(staying)
        if other != approach:
            told.append(f"If the data may not leave, the advice is {other} (facts.data_may_leave).")
    return told


RULES: tuple[tuple[str, Callable[[Evidence, Approach], bool]], ...] = (
    ("prompting first, always.", lambda e, a: True),
    (
        "fine-tune for style, format and narrow repeated tasks, and for latency and cost at volume.",
        lambda e, a: "tuning" in a,
    ),
    (
        "RAG for facts that change.",
        lambda e, a: "rag" in a or "rag" in e.scores or bool(e.facts.knowledge_changes),
    ),
    (
        f"under about {FEW_ROWS} good rows prompting usually wins.",
        lambda e, a: e.rows < FEW_ROWS,
    ),
    (
        "100 excellent rows beat 10,000 mediocre ones.",
        lambda e, a: a == "more-data" or e.rows >= 1000,
    ),
    ("most products combine RAG and fine-tuning.", lambda e, a: "rag" in e.scores),
)


def _priors(evidence: Evidence, approach: Approach) -> tuple[str, ...]:
    return tuple(f"Rule of thumb: {text}" for text, bears in RULES if bears(evidence, approach))
