"""After measuring: comparisons, verdict, report.json and report.html."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tunesmith.advise import Advice
from tunesmith.evaluate import forgetting
from tunesmith.evaluate.comparison import Comparison, Noise, Verdict, compare_all, verdict
from tunesmith.evaluate.evaluation import Measured
from tunesmith.graders.choose import Chosen
from tunesmith.models.catalog import ModelSpec
from tunesmith.pipeline import forget
from tunesmith.pipeline.advice import entry
from tunesmith.pipeline.decide import Beside
from tunesmith.pipeline.folder import Event, RunFolder, timings, unmeasured
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
    details: Mapping[str, Mapping[str, Any]]
    """What else is known of an arm, by its name: the variants tried, how well it retrieves."""
    advice: Advice
    external: Mapping[str, Any] = field(default_factory=lambda: unmeasured("no endpoint was named"))
    beside: Beside = field(default_factory=Beside)

    def comparisons(self) -> list[Comparison]:
        """Every pair of arms on the primary metric, the tuned one first."""
        order = ("tuned", "rag+tuned", "base", "prompt", "classical", "rag", "external")
        ranked = sorted(self.arms.values(), key=lambda arm: order.index(arm.arm))
        return compare_all(ranked, self.chosen.primary)

    def verdict(
        self, comparisons: Sequence[Comparison], goal: float | None, *, may_leave: bool
    ) -> Verdict:
        """Ship it or not; without a tuned arm there is nothing to ship.

        Args:
            may_leave: rows may be sent to the external model.
        """
        tuned = self.arms.get("tuned")
        if tuned is None:
            return Verdict(False, "Nothing to ship: the tuned model was not among the arms.")
        return verdict(
            tuned,
            self.arms.get("base"),
            [arm for name, arm in self.arms.items() if name not in ("tuned", "base", "external")],
            comparisons,
            metric=self.chosen.primary,
            task=self.chosen.task,
            goal=goal,
            noise=self.noise,
            external=self.arms.get("external"),
            may_leave=may_leave,
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
    cost, budget = forget.parts(folder, found.arms), recipe.forgetting
    reason = forgetting.over_budget(cost["forgetting"], budget.max_kl, budget.max_loss)
    leave = recipe.facts.data_may_leave == "yes"
    shipped = found.verdict(comparisons, recipe.evaluate.goal, may_leave=leave)
    said = forgetting.held_to(shipped, reason)
    events = folder.events()
    ledger = folder.read_json("ledger.json")
    noise = asdict(found.noise) if found.noise else unmeasured("the base was not among the arms")
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
            arm_entry(measured, found.details.get(name, {}))
            for name, measured in found.arms.items()
        ],
        "primary": found.chosen.primary,
        "graders": found.chosen.reason,
        "comparisons": [asdict(comparison) for comparison in comparisons],
        "noise": noise,
        "parity": asdict(found.parity)
        if found.parity
        else unmeasured("the tuned arm was left out"),
        **cost,
        "overfitting": overfitting(events),
        "advice": entry(found.advice),
        "external": dict(found.external),
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
        return unmeasured("nothing was trained")
    last = losses[-max(1, min(20, len(losses) // 5)) :]
    held = ended[-1]["validation_loss"]
    return {
        "train_loss": math.fsum(last) / len(last),
        "validation_loss": held if held is not None else unmeasured("there are no validation rows"),
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
    }


def with_timings(report: dict[str, Any], folder: RunFolder) -> dict[str, Any]:
    """The report with the seconds of each stage."""
    return {**report, "timings": timings(folder.events())}
