"""Tokens, hours, memory and money, for each way of training and of answering.

An amount is a range, or unknown with the reason; what is added to something unknown is unknown, and
nothing unknown is ever zero. Every assumption is a constant here, and is told with the result.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from scipy.special import stdtrit

from tunesmith.prices import GpuPrice, TokenPrice

DRIFT = 0.12
"""Share by which a machine's speed in a long run differs from that of a few steps."""
UTILISATION = (0.10, 0.25, 0.45)
"""Share of a GPU's peak that training reaches: small models and small batches reach little."""
TOKENIZERS = (0.8, 1.0, 1.25)
"""Tokens that another model's tokenizer makes of the same text, as a share of ours."""
SETUP_HOURS = (0.1, 0.2, 0.5)
"""Hours that a rented machine is paid for before it trains: start, installation, the model."""
MONTH_HOURS = 730
PAID_OFF_MONTHS = 12
"""Months over which the first training is spread."""
MONTHLY_TRAININGS = {"never": 0, "yearly": 1 / 12, "monthly": 1, "weekly": 52 / 12, "daily": 30}
"""Trainings a month that keep up with knowledge that changes as often."""


@dataclass(frozen=True, slots=True)
class Amount:
    """A figure with the range that it lies in; a value of None is unknown, for a reason."""

    value: float | None
    low: float = 0.0
    high: float = 0.0
    reason: str = ""

    @classmethod
    def known(cls, value: float, low: float | None = None, high: float | None = None) -> Amount:
        """A figure; without a range it is exact."""
        return cls(value, value if low is None else low, value if high is None else high)

    @classmethod
    def unknown(cls, reason: str) -> Amount:
        """What is not known, and why."""
        return cls(None, reason=reason)

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> Amount:
        """The inverse of `to_json`."""
        if entry["value"] is None:
            return cls.unknown(entry["reason"])
        high = entry["high"]
        return cls(entry["value"], entry["low"], math.inf if high is None else high)

    def __add__(self, other: Amount) -> Amount:
        if self.value is None or other.value is None:
            return self if self.value is None else other
        return Amount(self.value + other.value, self.low + other.low, self.high + other.high)

    def __mul__(self, other: Amount) -> Amount:
        """The product of two amounts that are not negative."""
        if self.value is None or other.value is None:
            return self if self.value is None else other
        return Amount(self.value * other.value, self.low * other.low, self.high * other.high)

    def to_json(self) -> dict[str, Any]:
        """As report.json has a figure; a `high` of None is a range without an upper end."""
        if self.value is None:
            return {"value": None, "reason": self.reason}
        high = None if math.isinf(self.high) else self.high
        return {"value": self.value, "low": self.low, "high": high}


def price(value: float | None, what: str) -> Amount:
    """A price of a table, where None is unknown."""
    return Amount.unknown(f"{what} is not known") if value is None else Amount.known(value)


def spread(shares: tuple[float, float, float], value: float = 1.0) -> Amount:
    """A value times an assumption's (low, middle, high)."""
    low, middle, high = shares
    return Amount(value * middle, value * low, value * high)


def minutes(seconds: Amount) -> str:
    """A known time with its range, in words."""
    assert seconds.value is not None
    unit, name = (60, "min") if seconds.value >= 120 else (1, "s")
    value, low, high = (f"{x / unit:,.0f}" for x in (seconds.value, seconds.low, seconds.high))
    return f"{value} {name} ({low} to {high})"


# Training on this machine.


def forecast(measured: Mapping[str, Any], unit: str) -> Amount:
    """Seconds of a whole run from a dry run: train.dryrun.

    Step seconds are a straight line in the distinct tokens of a step, fitted by least squares; the
    interval is the line's own for the sum of the steps, widened by DRIFT.

    Args:
        unit: `seconds` or `cpu_seconds`.
    """
    plan = measured["schedule"]
    return part(measured, unit, steps=plan["steps"], validations=plan["validations"])


def part(
    measured: Mapping[str, Any], unit: str, *, steps: int, validations: int, starts: int = 1
) -> Amount:
    """As `forecast`, of a run that ends after so many steps and validations, and was started anew."""
    points = [(step["tokens"], step[unit]) for step in measured["steps"]]
    plan = measured["schedule"]
    tokens = plan["tokens"] / plan["steps"] if plan["steps"] else 0.0
    stepping, error = line_sum(points, steps, tokens)
    fixed = starts * measured["startup"][unit] + measured["ending"][unit]
    value = fixed + stepping + validations * measured["validation"][unit]
    half = math.hypot(error, DRIFT * value)
    return Amount(value, max(0.0, value - half), value + half)


def line_sum(points: Sequence[tuple[float, float]], count: int, mean: float) -> tuple[float, float]:
    """The sum of `count` values of a line at places whose mean is `mean`, and half its 95 % interval.

    A line that would fall, or begin below zero, is drawn through the origin instead: larger steps do
    not take less time.
    """
    n = len(points)
    mx, my = math.fsum(x for x, _ in points) / n, math.fsum(y for _, y in points) / n
    around = math.fsum((x - mx) ** 2 for x, _ in points)
    slope = math.fsum((x - mx) * (y - my) for x, y in points) / around if around else 0.0
    start = my - slope * mx
    if around and (slope < 0 or start < 0):
        slope, start, around = my / mx, 0.0, math.fsum(x * x for x, _ in points)
    left = math.fsum((y - start - slope * x) ** 2 for x, y in points)
    freedom = n - (2 if start and around else 1)
    if freedom < 1:
        return count * (start + slope * mean), math.inf
    lever = (mean - mx if start else mean) ** 2 / around if around else 0.0
    spread_of_sum = count**2 * ((1 / n if start else 0.0) + lever) + count
    error = math.sqrt(left / freedom * spread_of_sum)
    return count * (start + slope * mean), float(stdtrit(freedom, 0.975)) * error


def checked(
    planned: Mapping[str, Any], spent: Sequence[Mapping[str, Any]], steps: int, validations: int
) -> dict[str, Any]:
    """What a run took beside what was forecast: part of report.json's cost.

    A run that stopped early is held against the forecast of the steps that it took.

    Args:
        planned: forecast.json.
        spent: {"seconds", "cpu_seconds"} of each attempt at training.
    """
    found: dict[str, Any] = {
        "steps": steps,
        "planned_steps": planned["dry_run"]["schedule"]["steps"],
        **{"forecast": {}, "actual": {}, "ratio": {}},
    }
    for unit in ("cpu_seconds", "seconds"):
        said = part(
            planned["dry_run"], unit, steps=steps, validations=validations, starts=len(spent)
        )
        took = math.fsum(item[unit] for item in spent)
        assert said.value is not None
        found["forecast"][unit], found["actual"][unit] = said.to_json(), took
        found["ratio"][unit] = took / said.value
    return found


# Training elsewhere.


@dataclass(frozen=True, slots=True)
class Work:
    """What is to be trained.

    Attributes:
        tokens: of one pass over the training rows, each row's counted whole.
        validation_tokens: of one pass over the validation rows.
        distinct: tokens that are computed over all steps, shared ones once.
        parameters: of the base.
        learned: weights that are trained.
        full: all weights are.
    """

    tokens: int
    validation_tokens: int
    epochs: float
    distinct: float
    parameters: int
    learned: int
    full: bool

    @property
    def flops(self) -> float:
        """Operations of all steps: 2 a weight and token forward, 2 for the gradient of activations, and
        2 for that of the weights, where these are trained (Kaplan et al. 2020, arXiv:2001.08361).
        """
        each = 4 * self.parameters + 2 * (self.parameters if self.full else self.learned)
        return each * self.distinct

    @property
    def memory_gb(self) -> float:
        """Weights in 2 bytes, 16 for each that is trained, and 2 GB of activations."""
        return (2 * self.parameters + 16 * self.learned) / 1e9 + 2


@dataclass(frozen=True, slots=True)
class Way:
    """One way of training, and what it costs."""

    place: str
    name: str
    hours: Amount
    usd: Amount
    as_of: str = ""
    confidence: str = ""
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As `tunesmith cost --json` prints it."""
        return {**asdict(self), "hours": self.hours.to_json(), "usd": self.usd.to_json()}


def here(seconds: Amount, usd_per_hour: float | None) -> Way:
    """On this machine, from its forecast."""
    hours = seconds * Amount.known(1 / 3600)
    rate = price(usd_per_hour, "what this machine costs an hour (facts.usd_per_hour)")
    return Way("here", "this machine", hours, hours * rate)


def rented(work: Work, row: GpuPrice) -> Way:
    """On one rented GPU: operations over the share of its peak that is assumed."""
    low, middle, high = (work.flops / (row.tflops * 1e12 * share) / 3600 for share in UTILISATION)
    hours = Amount(middle, high, low) + spread(SETUP_HOURS)
    usd = hours * price(row.per_hour, "its price")
    name = f"{row.provider} {row.gpu}"
    return Way("rented", name, hours, usd, row.as_of, row.confidence, (row.tier, *_note(row)))


def hosted(work: Work, row: TokenPrice) -> Way:
    """At a provider: tokens x epochs x rate, and no less than its minimum."""
    tokens = work.tokens * work.epochs
    if row.counts_validation:
        tokens += work.validation_tokens * work.epochs
    rate = price(row.train, "its price of training")
    if rate.value is not None and row.train_high is not None:
        rate = Amount(rate.value, rate.value, row.train_high)
    usd = spread(TOKENIZERS, tokens / 1e6) * rate
    if usd.value is not None and row.minimum is not None:
        least = row.minimum
        usd = Amount(max(least, usd.value), max(least, usd.low), max(least, usd.high))
    hours = Amount.unknown("a provider's queue and speed are not known")
    name = f"{row.provider} {row.model}"
    return Way("hosted", name, hours, usd, row.as_of, row.confidence, _note(row))


def _note(row: TokenPrice | GpuPrice) -> tuple[str, ...]:
    ends = isinstance(row, TokenPrice) and row.ends
    return (*((f"ends on {ends}",) if ends else ()), *((row.note,) if row.note else ()))


# Answering.


def mean(values: Sequence[float]) -> Amount:
    """The mean with its 95 % interval by Student's t; of one value, unknown width is infinite."""
    n = len(values)
    if not n:
        return Amount.unknown("nothing was measured")
    middle = math.fsum(values) / n
    if n == 1:
        return Amount(middle, 0.0, math.inf)
    error = math.sqrt(math.fsum((x - middle) ** 2 for x in values) / (n - 1) / n)
    half = float(stdtrit(n - 1, 0.975)) * error
    return Amount(middle, max(0.0, middle - half), middle + half)


def per_1000(tokens_in: Amount, tokens_out: Amount, row: TokenPrice) -> Amount:
    """US dollars of 1,000 calls at a price of tokens."""
    thousand = Amount.known(1000 / 1e6)
    inward = tokens_in * thousand * price(row.input, f"the price of {row.model}")
    return inward + tokens_out * thousand * price(row.output, f"the price of {row.model}")


def per_1000_here(seconds: Amount, at_once: int, usd_per_hour: float | None) -> Amount:
    """US dollars of 1,000 calls on this machine while it is kept busy.

    Args:
        seconds: of one call, with `at_once` of them under way: by Little's law so many end in that
            time.
    """
    rate = price(usd_per_hour, "what this machine costs an hour (facts.usd_per_hour)")
    return seconds * Amount.known(1000 / at_once / 3600) * rate


def upkeep(training: Amount, hosting: Amount, knowledge_changes: str) -> Amount:
    """US dollars a month that a tuned model costs before its first call.

    Args:
        training: one training.
        hosting: a month of it.
        knowledge_changes: how often, in the words of facts; unknown counts the first training only.
    """
    again = MONTHLY_TRAININGS.get(knowledge_changes, 0)
    return training * Amount.known(1 / PAID_OFF_MONTHS + again) + hosting


def break_even(fixed: Amount, small: Amount, large: Amount) -> Amount:
    """Calls a month at which a tuned model costs what prompting another one costs.

    Args:
        fixed: the tuned model's month, called or not.
        small, large: US dollars of 1,000 calls of either.
    """
    for amount in (fixed, small, large):
        if amount.value is None:
            return amount
    assert fixed.value is not None
    assert small.value is not None
    assert large.value is not None
    if large.value <= small.value:
        return Amount.unknown("a call of the tuned model costs no less")
    most = large.low - small.high
    return Amount(
        1000 * fixed.value / (large.value - small.value),
        1000 * fixed.low / (large.high - small.low),
        1000 * fixed.high / most if most > 0 else math.inf,
    )


HIDDEN = (
    "Labelling: the rows that were used took somebody's time, and so will the next ones.",
    "Evaluation: every arm answers the test rows again after each change.",
    "Re-training: knowledge, products and base models change.",
    "Idle hours: a deployment of one's own is paid for whether it is called or not.",
    "Egress: providers charge for data that leaves them.",
)
"""Costs that no table has."""
