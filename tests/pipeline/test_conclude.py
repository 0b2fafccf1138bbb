from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest

from tunesmith.advise import Advice
from tunesmith.evaluate.evaluation import Measured, Sample
from tunesmith.evaluate.statistics import Interval
from tunesmith.graders.choose import choose
from tunesmith.pipeline import conclude

CONTRACT = {
    *("schema", "run", "model", "data", "arms", "primary", "comparisons", "forgetting"),
    *("overfitting", "advice", "verdict", "cost", "timings"),
}
OURS = {
    *[
        "behind",
        "data_enough",
        "external",
        "goal",
        "graders",
        "judge",
        "memorising",
        "noise",
        "parity",
    ],
}


def measured(name: str, right: int, rows: int = 40) -> Measured:
    samples = tuple(
        Sample(
            id=str(n),
            prompt="p",
            reference="r",
            output="o",
            scores={"exact": float(n < right)},
            tokens_in=1,
            tokens_out=1,
            seconds=0.1,
            finish_reason="stop",
            cluster=str(n),
        )
        for n in range(rows)
    )
    share = right / rows
    return Measured(name, name, samples, {"exact": Interval(share, share, share, rows)})  # pyright: ignore[reportArgumentType]


def found(**right: int) -> conclude.Findings:
    arms = {name: measured(name, count) for name, count in right.items()}
    chosen = choose(["yes", "no"] * 20, with_tools=False, named=())
    return conclude.Findings(arms, chosen, None, None, {}, Advice("prompting", ("so",)))


def test_every_pair_of_arms_is_compared_once_the_tuned_one_first() -> None:
    pairs = [(c.a, c.b) for c in found(base=4, classical=20, prompt=8, tuned=36).comparisons()]
    assert pairs == list(combinations(("tuned", "base", "prompt", "classical"), 2))


def test_the_external_arm_is_compared_and_told_beside_the_others() -> None:
    arms = found(external=38, base=4, tuned=30)
    pairs = [(c.a, c.b) for c in arms.comparisons()]
    assert pairs == [("tuned", "base"), ("tuned", "external"), ("base", "external")]
    said = arms.verdict(arms.comparisons(), None, may_leave=False)
    assert said.ship
    assert "0.95 for the external model (-0.20" in said.sentence


def test_the_verdict_follows_the_rows_and_the_goal() -> None:
    good = found(base=4, classical=10, prompt=8, tuned=36)
    assert good.verdict(good.comparisons(), None, may_leave=False).ship
    assert not good.verdict(good.comparisons(), 0.95, may_leave=False).ship
    without = found(base=4, prompt=8)
    assert (
        "not among the arms"
        in without.verdict(without.comparisons(), None, may_leave=False).sentence
    )


def step(number: int, loss: float) -> dict[str, Any]:
    return {"type": "step", "step": number, "loss": loss}


def test_the_training_loss_is_the_mean_of_the_last_fifth() -> None:
    ended = {"type": "trained", "validation_loss": 1.5, "best_step": 8, "stopped_early": True}
    events = [*(step(n, float(n)) for n in range(1, 11)), ended]
    assert conclude.overfitting(events) == {
        "train_loss": 9.5,
        "validation_loss": 1.5,
        "best_step": 8,
        "stopped_early": True,
    }
    events[-1] = {**ended, "validation_loss": None}
    assert conclude.overfitting(events)["validation_loss"]["value"] is None
    assert conclude.overfitting([])["value"] is None


def test_the_report_has_the_keys_of_the_contract(made: Any) -> None:
    report = made.report
    assert set(report) == CONTRACT | OURS
    assert report["schema"] == "tunesmith.report/1"
    assert set(report["model"]) == {"base", "revision", "tuned"}
    assert set(report["data"]) == {
        *("rows", "used", "rejected", "duplicates", "train", "validation", "test"),
        *("trained_tokens", "masked_tokens", "truncated_rows"),
    }
    arm = {
        *("name", "kind", "scores", "tokens_in", "tokens_out"),
        *("latency_p50", "latency_p95", "usd_per_1000", "practical", "latency"),
    }
    assert [a["kind"] for a in report["arms"]] == ["base", "classical", "prompt", "tuned"]
    assert all(
        set(a) == arm | ({"variants", "search"} if a["kind"] == "prompt" else set())
        for a in report["arms"]
    )
    assert all(
        set(s) == {"value", "low", "high", "n"}
        for a in report["arms"]
        for s in a["scores"].values()
    )
    assert len(report["comparisons"]) == 6
    keys = {"a", "b", "metric", "difference", "low", "high", "p", "n", "p_adjusted"}
    assert all(set(c) == keys for c in report["comparisons"])
    assert set(report["overfitting"]) == {
        *("train_loss", "validation_loss", "best_step", "stopped_early"),
    }
    assert set(report["advice"]) == {"approach", "reasons", "facts", "priors"}
    assert set(report["verdict"]) == {"ship", "sentence"}
    assert set(report["forgetting"]) == {"kl", "kl_interval", "general", "tradeoff"}


def test_numbers_of_the_report_agree_with_each_other(made: Any) -> None:
    report, folder = made.report, made.folder
    data = report["data"]
    assert data["rows"] == data["used"] + data["rejected"] + data["duplicates"] == 120
    assert data["used"] == data["train"] + data["validation"] + data["test"]
    values = {arm["name"]: arm["scores"][report["primary"]] for arm in report["arms"]}
    for pair in report["comparisons"]:
        gain = values[pair["a"]]["value"] - values[pair["b"]]["value"]
        assert pair["difference"] == pytest.approx(gain)
        assert pair["low"] <= pair["difference"] <= pair["high"]
    for name, score in values.items():
        rows = folder.read_lines(f"samples/{name}.jsonl")
        assert score["n"] == len(rows) == data["test"]
        mean = sum(row["scores"][report["primary"]] for row in rows) / len(rows)
        assert score["value"] == pytest.approx(mean)
    steps = [event for event in folder.events() if event["type"] == "step"]
    assert report["cost"]["trained_tokens"] == sum(event["trained_tokens"] for event in steps)
    # One epoch: each row once.
    assert report["cost"]["trained_tokens"] == data["trained_tokens"]
