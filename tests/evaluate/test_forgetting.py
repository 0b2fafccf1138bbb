from __future__ import annotations

import asyncio
import itertools
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import pytest

from tunesmith.chat import Completion, Message, SamplingParams, Tool, Usage
from tunesmith.evaluate import forgetting
from tunesmith.evaluate.comparison import Verdict
from tunesmith.evaluate.forgetting import Answer, Rollout, ask, general, held_to, over_budget
from tunesmith.evaluate.probes import Probe

END = "."
LONGEST = 3
OPEN = [Probe(f"open:{n}", "open", f"question {n}") for n in range(600)]


@dataclass(frozen=True)
class Tiny:
    """A language model over two letters and an end, whose next token depends on the last one."""

    table: Mapping[str, Mapping[str, float]]

    async def complete(
        self, messages: Sequence[Message], params: SamplingParams, tools: Sequence[Tool] = ()
    ) -> Completion:
        draw, text = random.Random(f"{params.seed}{messages[-1].content}"), ""
        while len(text) < LONGEST:
            row = self.table[text[-1:]]
            (token,) = draw.choices(list(row), list(row.values()))
            if token == END:
                return Completion(text, "stop", Usage(1, len(text) + 1))
            text += token
        return Completion(text, "length", Usage(1, len(text)))

    async def logprobs(
        self, messages: Sequence[Message], answer: Message, tools: Sequence[Tool] = ()
    ) -> list[float]:
        text = (answer.content or "") + END
        return [math.log(self.table[text[:i][-1:]][text[i]]) for i in range(len(text))]

    async def text_logprobs(self, text: str) -> list[float]:
        return (await self.logprobs([], Message("assistant", text)))[1:-1]


BASE = Tiny({"": {"a": 0.5, "b": 0.5}, "a": {"a": 0.4, "b": 0.3, END: 0.3}, "b": {"a": 0.2, "b": 0.2, END: 0.6}})  # fmt: skip
TUNED = Tiny({"": {"a": 0.8, "b": 0.2}, "a": {"a": 0.6, "b": 0.1, END: 0.3}, "b": {"a": 0.2, "b": 0.3, END: 0.5}})  # fmt: skip


def exact(p: Tiny, q: Tiny) -> float:
    """KL(p || q) for each token, by enumerating every answer that can be written."""
    total = tokens = 0.0
    for length in range(1, LONGEST + 1):
        for letters in itertools.product("ab", repeat=length):
            text = "".join(letters) + (END if length < LONGEST else "")
            pairs = [(text[:i][-1:], text[i]) for i in range(len(text))]
            likely = math.prod(p.table[before][token] for before, token in pairs)
            total += likely * sum(math.log(p.table[b][t] / q.table[b][t]) for b, t in pairs)
            tokens += likely * len(text)
    return total / tokens


def moved(tuned: Tiny, base: Tiny) -> list[Rollout]:
    return asyncio.run(forgetting.rollouts(tuned, base, OPEN, seed=1))


def test_the_divergence_is_that_of_exact_enumeration() -> None:
    found = forgetting.kl(moved(TUNED, BASE))
    assert found.low < exact(TUNED, BASE) < found.high
    assert found.high - found.low < 0.1
    assert found.value == pytest.approx(exact(TUNED, BASE), rel=0.3)
    assert found.n == sum(len(rollout.ratios) for rollout in moved(TUNED, BASE))


def test_a_model_is_no_distance_from_itself() -> None:
    found = forgetting.kl(moved(BASE, BASE))
    assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)


def test_the_divergence_by_hand_weighs_tokens_and_resamples_prompts() -> None:
    rollouts = [Rollout("1", "p", "x", (0.1, 0.3)), Rollout("2", "q", "y", (0.5,))]
    found = forgetting.kl(rollouts)
    assert found.value == pytest.approx(0.3)
    assert found.n == 3
    assert forgetting.kl([rollouts[0], rollouts[0]]).high == pytest.approx(0.2)


def test_choices_are_scored_by_sum_and_by_byte() -> None:
    sure = Tiny({"": {"a": 0.5, "b": 0.5}, "a": {"a": 0.9, END: 0.1}, "b": {"b": 0.1, END: 0.9}})
    probes = [Probe("c:1", "c", "?", ("b", "bb"), 0), Probe("c:2", "c", "?", ("b", "aa"), 1)]
    found = asyncio.run(ask(sure, probes))
    assert dict(found["c:1"].scores) == {"c": 1.0, "c_normalised": 1.0, "score": 1.0}
    # b: log 0.5 = -0.69. aa: log 0.45 = -0.80, and -0.40 a byte.
    assert dict(found["c:2"].scores) == {"c": 0.0, "c_normalised": 1.0, "score": 1.0}


def test_answers_and_texts_are_scored_and_open_questions_are_not_asked() -> None:
    sure = Tiny({"": {"a": 1.0}, "a": {"b": 1.0}, "b": {END: 1.0}})
    probes = [
        Probe("r:1", "r", "?", check={"reference": "ab"}),
        Probe("t:1", "t", text="ab"),
        OPEN[0],
    ]
    told: list[tuple[int, int]] = []
    found = asyncio.run(ask(sure, probes, progress=lambda *n: told.append(n)))
    assert found["r:1"] == Answer({"r": 1.0, "score": 1.0}, "ab")
    assert found["t:1"] == Answer({"t_logprob": 0.0})
    assert told == [(1, 2), (2, 2)]


def answers(values: Sequence[float]) -> dict[str, Answer]:
    return {f"s:{n}": Answer({"s": value, "score": value}) for n, value in enumerate(values)}


def test_general_ability_is_compared_probe_by_probe() -> None:
    base, tuned = answers([1.0] * 30 + [0.0] * 10), answers([1.0] * 15 + [0.0] * 25)
    found = general(base, tuned)
    assert list(found) == ["score", "s"]
    assert (found["s"]["base"], found["s"]["tuned"], found["s"]["n"]) == (0.75, 0.375, 40)
    assert found["s"]["difference"] == pytest.approx(-0.375)
    assert found["s"]["low"] < -0.375 < found["s"]["high"] < 0
    same = general(base, base)["score"]
    assert same["difference"] == 0.0
    assert same["low"] < 0 < same["high"]


SHIP = Verdict(True, "Ship it: tuned answers 0.90 of 40 unseen rows exactly.")
LOST: dict[str, Any] = {
    "kl": 0.3,
    "general": {"score": {"difference": -0.1, "low": -0.2, "high": -0.02}},
}


def test_a_budget_that_is_kept_leaves_the_verdict() -> None:
    assert over_budget(LOST, None, None) is None
    assert over_budget(LOST, 0.3, 0.1) is None
    assert held_to(SHIP, None) is SHIP


def test_a_budget_that_is_broken_fails_the_verdict_with_its_number() -> None:
    moved_too_far, lost = over_budget(LOST, 0.2, None), over_budget(LOST, 0.5, 0.05)
    assert moved_too_far == "it moved 0.3 nats a token from the base (at most 0.2)"
    assert lost == "it lost 0.100 of general ability (95 % 0.020 to 0.200), at most 0.05 allowed"
    said = held_to(SHIP, lost)
    assert not said.ship
    assert said.sentence == (
        "Do not ship it: tuned answers 0.90 of 40 unseen rows exactly; it lost 0.100 of general "
        "ability (95 % 0.020 to 0.200), at most 0.05 allowed."
    )
    no = held_to(Verdict(False, "Do not ship it: no gain."), lost)
    assert no.sentence.startswith("Do not ship it: no gain; it lost")


def test_a_budget_without_a_measurement_fails_the_verdict() -> None:
    missing = {"value": None, "reason": "left out"}
    assert over_budget(missing, None, None) is None
    assert "not measured" in str(over_budget(missing, 0.1, None))
    assert "not measured" in str(over_budget(missing, None, 0.1))


def test_a_point_of_the_curve_has_all_three_and_the_base_no_distance() -> None:
    some = answers([1.0, 0.0, 1.0, 1.0])
    away = [Rollout("1", "p", "x", (0.2,)), Rollout("2", "q", "y", (0.4,))]
    point = forgetting.point(0.5, some, away, None)
    assert point.score is not None
    assert point.kl is not None
    assert (point.scale, point.score.value, point.task) == (0.5, 0.75, None)
    assert point.kl.value == pytest.approx(fmean((0.2, 0.4)))
    still = forgetting.point(0.0, some, (), None)
    assert still.kl is not None
    assert still.kl.value == 0.0
