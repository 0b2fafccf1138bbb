"""What tuning cost: how far the model moved on general prompts, and what it can no longer do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol, TypeVar

import numpy as np

from tunesmith.chat import ChatModel, Message, SamplingParams, TextScorer
from tunesmith.evaluate import statistics
from tunesmith.evaluate.comparison import Verdict
from tunesmith.evaluate.evaluation import Progress, each
from tunesmith.evaluate.probes import Probe, passes
from tunesmith.evaluate.statistics import Floats, Interval

SCORE = "score"
"""The metric of all probes together that are right or wrong."""
ANSWER_TOKENS = 48
"""Longest answer to a probe."""
T = TypeVar("T")
R = TypeVar("R")


class Probed(ChatModel, TextScorer, Protocol):
    """A model that answers, and says how likely answers and texts are."""

    async def text_logprobs(self, text: str) -> list[float]:
        """Natural-log probability of each token of a text behind the first."""
        ...


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model made of a probe: its scores by metric, and what it wrote, if anything."""

    scores: Mapping[str, float]
    output: str = ""


@dataclass(frozen=True, slots=True)
class Rollout:
    """An answer of the tuned model to an open question.

    Attributes:
        ratios: log p_tuned - log p_base of each of its tokens, in nats.
    """

    id: str
    prompt: str
    output: str
    ratios: tuple[float, ...]


async def ask(
    model: Probed,
    probes: Sequence[Probe],
    *,
    concurrency: int = 64,
    progress: Progress | None = None,
) -> dict[str, Answer]:
    """A model's answers to the probes that are not open, by their id.

    Of a choice, the options are scored as lm-eval does: right where the right one is the likeliest
    by the sum of its tokens' log-probabilities, and `_normalised` by that sum for each byte. Other
    answers are greedy. Of a text, `_logprob` is the log-probability for each byte: higher is better.
    """

    async def one(probe: Probe) -> Answer:
        if probe.text:
            total = math.fsum(await model.text_logprobs(probe.text))
            return Answer({f"{probe.suite}_logprob": total / len(probe.text.encode())})
        if probe.choices:
            return Answer(await _choice(model, probe))
        asked = [Message("user", probe.prompt)]
        completion = await model.complete(asked, SamplingParams(max_tokens=ANSWER_TOKENS))
        right = float(passes(completion.text, probe.check))
        return Answer({probe.suite: right, SCORE: right}, completion.text)

    closed = [probe for probe in probes if not probe.open]
    found = await each(closed, one, concurrency=concurrency, progress=progress)
    return {probe.id: answer for probe, answer in zip(closed, found, strict=True)}


async def _choice(model: Probed, probe: Probe) -> dict[str, float]:
    asked = [Message("user", probe.prompt, cache=True)]
    # Without the token that ends the turn: an option is no whole answer.
    sums = [
        math.fsum((await model.logprobs(asked, Message("assistant", option)))[:-1])
        for option in probe.choices
    ]
    each_byte = [total / len(o.encode()) for total, o in zip(sums, probe.choices, strict=True)]
    plain, normalised = (float(v.index(max(v)) == probe.right) for v in (sums, each_byte))
    return {probe.suite: plain, f"{probe.suite}_normalised": normalised, SCORE: normalised}


def general(
    base: Mapping[str, Answer], tuned: Mapping[str, Answer], seed: int = 0
) -> dict[str, dict[str, Any]]:
    """{METRIC: {"base", "tuned", "difference", "low", "high", "n"}} over the probes both answered.

    The difference is tuned - base, higher is better, with its paired 95 % interval.
    """
    both = [(name, base[name].scores, tuned[name].scores) for name in tuned if name in base]
    out: dict[str, dict[str, Any]] = {}
    for metric in sorted({metric for _, scores, _ in both for metric in scores}, key=_first):
        rows = [(name, b[metric], t[metric]) for name, b, t in both if metric in b]
        names, before, after = (list(column) for column in zip(*rows, strict=True))
        found = statistics.paired(after, before, names, seed)
        out[metric] = {
            "base": math.fsum(before) / len(rows),
            "tuned": math.fsum(after) / len(rows),
            "difference": found.value,
            "low": found.low,
            "high": found.high,
            "n": found.n,
        }
    return out


def _first(metric: str) -> tuple[bool, str]:
    """All probes together, then the suites by name."""
    return metric != SCORE, metric


async def rollouts(
    tuned: Probed,
    base: TextScorer,
    probes: Sequence[Probe],
    *,
    seed: int = 0,
    concurrency: int = 64,
    progress: Progress | None = None,
) -> list[Rollout]:
    """The tuned model's answers to the open probes at temperature 1, scored by both models.

    Both score the answer's text without the space around it. Answers without any text, which no
    template can hold, are left out; of one that was cut at its longest, so is the end of the turn.
    """

    async def one(item: tuple[int, Probe]) -> Rollout:
        number, probe = item
        asked = [Message("user", probe.prompt)]
        params = SamplingParams(temperature=1.0, max_tokens=ANSWER_TOKENS, seed=seed + number)
        completion = await tuned.complete(asked, params)
        # Behind a character that was cut in its bytes stands nothing that a text can hold.
        text, cut, _ = completion.text.partition("\N{REPLACEMENT CHARACTER}")
        text = text.strip()
        if not text:
            return Rollout(probe.id, probe.prompt, "", ())
        answer = Message("assistant", text)
        ours, theirs = await tuned.logprobs(asked, answer), await base.logprobs(asked, answer)
        ratios = [a - b for a, b in zip(ours, theirs, strict=True)]
        kept = ratios[:-1] if cut or completion.finish_reason == "length" else ratios
        return Rollout(probe.id, probe.prompt, text, tuple(kept))

    opened = list(enumerate(probe for probe in probes if probe.open))
    found = await each(opened, one, concurrency=concurrency, progress=progress)
    return [rollout for rollout in found if rollout.ratios]


def kl(found: Sequence[Rollout], seed: int = 0) -> Interval:
    """KL(tuned || base) for each token that tuned writes, in nats; `n` is the number of tokens.

    The mean of log p_tuned - log p_base over tokens that tuned sampled: k1 of Schulman 2020,
    "Approximating KL divergence" (joschu.net/blog/kl-approx.html). It is unbiased, and may fall
    below 0 by chance. The interval resamples prompts.
    """
    sums = np.array([[math.fsum(r.ratios), len(r.ratios)] for r in found], np.float64)
    if not sums[:, 0].any():
        return Interval(0.0, 0.0, 0.0, int(sums[:, 1].sum()))
    spread = statistics.corpus_interval(sums, _mean, [rollout.prompt for rollout in found], seed)
    return replace(spread, n=int(sums[:, 1].sum()))


def _mean(totals: Floats) -> Floats:
    return totals[:, 0] / totals[:, 1]


def summary(
    base: Mapping[str, Answer],
    tuned: Mapping[str, Answer],
    found: Sequence[Rollout],
    seed: int = 0,
) -> dict[str, Any]:
    """`kl` with its interval, and `general`, as report.json has them."""
    away: dict[str, Any]
    if found:
        spread = kl(found, seed)
        away = {"kl": spread.value, "kl_interval": asdict(spread)}
    else:
        away = {"kl": {"value": None, "reason": "the tuned model answered no open question"}}
    return {**away, "general": general(base, tuned, seed)}


def over_budget(
    forgetting: Mapping[str, Any], max_kl: float | None, max_loss: float | None
) -> str | None:
    """Why a tuned model forgot more than it may, or None.

    Args:
        forgetting: as in report.json.
        max_kl: nats a token.
        max_loss: how much of the general score may be lost.
    """
    reasons: list[str] = []
    moved: Any = forgetting.get("kl")
    score = forgetting.get("general", {}).get(SCORE)
    if max_kl is not None and not isinstance(moved, int | float):
        reasons.append(
            "how far it moved from the base was not measured, and may not be over a budget"
        )
    elif max_kl is not None and moved > max_kl:
        reasons.append(f"it moved {moved:.3g} nats a token from the base (at most {max_kl:g})")
    if max_loss is not None and score is None:
        reasons.append("its general ability was not measured, and has a budget")
    elif max_loss is not None and -score["difference"] > max_loss:
        low, high = -score["high"], -score["low"]
        lost = f"{-score['difference']:.3f} of general ability (95 % {low:.3f} to {high:.3f})"
        reasons.append(f"it lost {lost}, at most {max_loss:g} allowed")
    return "; ".join(reasons) or None


def held_to(said: Verdict, reason: str | None) -> Verdict:
    """The verdict, which is a no where there is a reason against it."""
    if reason is None:
        return said
    facts = said.sentence.removesuffix(".")
    if said.ship:
        facts = f"Do not ship it: {facts.removeprefix('Ship it: ')}"
    return Verdict(False, f"{facts}; {reason}.")


@dataclass(frozen=True, slots=True)
class Point:
    """The tuned model with its adapter at a scale: 0 is the base, 1 as it was trained.

    Attributes:
        task: the primary metric on validation rows.
        score: of general probes; kl: nats a token.
    """

    scale: float
    task: Interval | None
    score: Interval | None
    kl: Interval | None


def point(
    scale: float,
    answers: Mapping[str, Answer],
    found: Sequence[Rollout],
    task: Interval | None,
    seed: int = 0,
) -> Point:
    """One point of the trade-off curve, from a model's answers to probes; the base is no distance
    from itself.
    """
    rows = {name: x.scores[SCORE] for name, x in answers.items() if SCORE in x.scores}
    score = statistics.interval(list(rows.values()), list(rows), seed) if rows else None
    away = kl(found, seed) if found else None
    return Point(scale, task, score, away if scale else Interval(0.0, 0.0, 0.0, 0))
