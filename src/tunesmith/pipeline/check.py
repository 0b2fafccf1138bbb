"""The data looked at, without a run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tunesmith.checks.report import by_severity
from tunesmith.errors import DataError, ModelError, UsageError
from tunesmith.evaluate import power
from tunesmith.models import fetch
from tunesmith.models.template import ChatTemplate
from tunesmith.pipeline import prepare, quality, selecting
from tunesmith.pipeline.begin import Screen
from tunesmith.recipe import Recipe

COUNTED = (
    *("rows", "used", "rejected", "duplicates", "train", "validation", "test"),
    *("trained_tokens", "masked_tokens", "truncated_rows"),
)


@dataclass(frozen=True, slots=True)
class Checked:
    """What `check --json` prints, and why a run would refuse the data."""

    value: dict[str, Any]
    refused: DataError | None


@dataclass(frozen=True, slots=True)
class Closer:
    """What is done beyond the checks that need no model.

    Attributes:
        deep: ask the encoder and the base.
        select: keep so many rows, in `out`.
    """

    deep: bool = False
    select: int | None = None
    out: Path | None = None


def check(recipe: Recipe, screen: Screen, closer: Closer = Closer()) -> Checked:
    """Read, split and check; tokens are counted where the model can be had.

    Raises:
        UsageError: rows to select without a file to write them to.
    """
    if (closer.select is None) != (closer.out is None):
        raise UsageError("--select N and --out FILE go together", expected="both, or neither")
    model = template = None
    try:
        model = fetch.resolve(recipe.model.name, revision=recipe.model.revision, say=screen.say)
        template = ChatTemplate.load(model.folder)
    except ModelError as error:
        screen.say(f"tokens are not counted: {error}")
    seed = recipe.train.seed
    try:
        prepared = prepare.gather(
            recipe.reading,
            template,
            seed=seed,
            told=lambda done: screen.progress("reading", done, None),
        )
    except DataError as error:
        return _unreadable(error)
    report = prepare.examine(
        prepared, recipe.reading, template, lambda done: screen.progress("checking", done, None)
    )
    extra: dict[str, Any] = {}
    if (closer.deep or closer.select) and not report.errors:
        seen, found = quality.examine(
            prepared.dataset,
            model if closer.deep else None,
            template,
            dtype=recipe.model.dtype,
            seed=seed,
            screen=screen,
            most=quality.MOST_ROWS if closer.select is None else len(prepared.dataset),
        )
        report = replace(report, findings=by_severity([*report.findings, *found.findings]))
        extra["quality"] = found.to_json()
        if closer.select is not None and closer.out is not None:
            kept = selecting.choose_rows(seen, found, closer.select, seed)
            extra["selected"] = selecting.write(prepared, seen, kept, closer.out)
            screen.say(selecting.sentence(extra["selected"]))
    screen.checked(prepared, report)
    ledger = prepare.weigh(prepared, template) if template else None
    missing = {"value": None, "reason": "the model is not here, so tokens are not counted"}
    data = {
        **prepared.counts(),
        "trained_tokens": ledger.trained if ledger else missing,
        "masked_tokens": ledger.masked if ledger else missing,
        "truncated_rows": 0,
    }
    findings = report.to_json()
    if recipe.method.type == "sft":
        findings.append(_power(len(prepared.split.test)))
        screen.say(findings[-1]["message"])
    refused = None
    try:
        prepare.refuse(prepared, recipe.reading, report)
    except DataError as error:
        refused = error
    return Checked({"data": data, "findings": findings, **extra}, refused)


def _power(rows: int) -> dict[str, Any]:
    """What the test rows could tell if two arms had nothing in common; most have, and tell more."""
    told = power.described(power.worst(rows))
    return {
        "check": "power",
        "severity": "note",
        "rows": [],
        "message": f"At worst, {told.get('sentence') or told['reason'] + '.'}",
        "remedy": "The report says what they told.",
    }


def _unreadable(error: DataError) -> Checked:
    """Nothing could be counted: the refusal is the one finding."""
    reason = {"value": None, "reason": error.found}
    finding = {
        "check": "form",
        "severity": "error",
        "rows": [],
        "message": f"{error.found}; expected {error.expected}" if error.expected else error.found,
        "remedy": error.remedy,
    }
    return Checked({"data": dict.fromkeys(COUNTED, reason), "findings": [finding]}, error)
