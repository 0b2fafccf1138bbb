"""After measuring: comparisons, verdict, report.json and report.html."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tunesmith.advise import Advice
from tunesmith.evaluate.comparison import Comparison, Noise, Verdict, compare_all, verdict
from tunesmith.evaluate.evaluation import Measured
from tunesmith.graders.choose import Chosen
from tunesmith.models.catalog import ModelSpec
from tunesmith.pipeline.decide import Beside
from tunesmith.pipeline.folder import Event, RunFolder, timings
from tunesmith.pipeline.measure import Parity, arm_entry
from tunesmith.recipe import Recipe

SCHEMA = "tunesmith.report/1"


@dataclass(frozen=True)
class Findings:
    """All that was measured on the test rows."""

    arms: Mapping[str, Measured]
    chosen: Chosen
    noise: Noise | None
    parity: Parity | None
    variants: Sequence[dict[str, Any]]
    advice: Advice
    beside: Beside = field(default_factory=Beside)

    def comparisons(self) -> list[Comparison]:
        """Every pair of arms on the primary metric, the tuned one first."""
        order = ("tuned", "base", "prompt", "classical")
        ranked = sorted(self.arms.values(), key=lambda arm: order.index(arm.arm))
        return compare_all(ranked, self.chosen.primary)

    def verdict(self, comparisons: Sequence[Comparison], goal: float | None) -> Verdict:
        """Ship it or not; without a tuned arm there is nothing to ship."""
        tuned = self.arms.get("tuned")
        if tuned is None:
            return Verdict(False, "Nothing to ship: the tuned model was not among the arms.")
        return verdict(
            tuned,
            self.arms.get("base"),
            self.arms.get("prompt"),
            self.arms.get("classical"),
            comparisons,
            metric=self.chosen.primary,
            task=self.chosen.task,
            goal=goal,
            noise=self.noise,
        )


def build(
    folder: RunFolder,
    recipe: Recipe,
    model: ModelSpec,
    counts: Mapping[str, int],
    tuned: str,
    found: Findings,
) -> dict[str, Any]:
    """report.json as the contract has it."""
    comparisons = found.comparisons()
    said = found.verdict(comparisons, recipe.evaluate.goal)
    events = folder.events()
    ledger = folder.read_json("ledger.json")
    noise = asdict(found.noise) if found.noise else _missing("the base was not among the arms")
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "run": folder.id,
        "model": {"base": model.name, "revision": model.revision, "tuned": tuned},
        "data": {
            **counts,
            "trained_tokens": ledger["trained"],
            "masked_tokens": ledger["masked"],
            "truncated_rows": 0,
        },
        "arms": [
            arm_entry(measured, found.variants if name == "prompt" else ())
            for name, measured in found.arms.items()
        ],
        "primary": found.chosen.primary,
        "graders": found.chosen.reason,
        "comparisons": [asdict(comparison) for comparison in comparisons],
        "noise": noise,
        "parity": asdict(found.parity) if found.parity else _missing("the tuned arm was left out"),
        "forgetting": _missing("general ability was not measured in this run"),
        "overfitting": overfitting(events),
        "advice": {"approach": found.advice.approach, "reasons": list(found.advice.reasons)},
        "verdict": {"ship": said.ship, "sentence": said.sentence},
        "cost": _cost(events),
        "timings": {},
    }
    return found.beside.joined(report)


def overfitting(events: Sequence[Event]) -> dict[str, Any]:
    """Losses where training ended, and which step was kept."""
    losses = [event["loss"] for event in events if event["type"] == "step"]
    ended = [event for event in events if event["type"] == "trained"]
    if not losses or not ended:
        return _missing("nothing was trained")
    last = losses[-max(1, min(20, len(losses) // 5)) :]
    held = ended[-1]["validation_loss"]
    return {
        "train_loss": math.fsum(last) / len(last),
        "validation_loss": held if held is not None else _missing("there are no validation rows"),
        "best_step": ended[-1]["best_step"],
        "stopped_early": ended[-1]["stopped_early"],
    }


def _cost(events: Sequence[Event]) -> dict[str, Any]:
    steps = [event for event in events if event["type"] == "step"]
    return {
        "tokens": sum(event["tokens"] for event in steps),
        "computed_tokens": sum(event["distinct_tokens"] for event in steps),
        "trained_tokens": sum(event["trained_tokens"] for event in steps),
        "training_seconds": math.fsum(event["seconds"] for event in steps),
        "usd": _missing("what this machine costs an hour is not known"),
    }


def _missing(reason: str) -> dict[str, Any]:
    return {"value": None, "reason": reason}


def with_timings(report: dict[str, Any], folder: RunFolder) -> dict[str, Any]:
    """The report with the seconds of each stage."""
    return {**report, "timings": timings(folder.events())}
