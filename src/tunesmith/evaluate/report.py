"""report.html: everything that a run found, on one page that opens without a network.

The page holds no script, and its content-security policy allows one style sheet, by its hash.
Whatever comes from the data is escaped by the template and made visible: control characters,
marks that turn the direction of writing, and lone surrogates, which UTF-8 cannot hold, are
printed as their numbers.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from jinja2.runtime import Undefined
from markupsafe import Markup

from tunesmith.evaluate import charts, curve
from tunesmith.evaluate.headline import duration, headline

HERE = Path(__file__).parent
ORDER = ("worse", "better", "low", "high")
LONGEST_TEXT = 4000
UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
IDENTITY = re.compile(r"seed|hash|sha|revision|git|weights|data")


@dataclass(frozen=True, slots=True)
class Answer:
    """What one arm wrote for one row, and its score on the primary metric (None: not scored)."""

    arm: str
    output: str
    score: float | None


@dataclass(frozen=True, slots=True)
class Picked:
    """One test row with every arm's answer; `group` is one of ORDER."""

    group: str
    id: str
    prompt: str
    reference: str
    answers: tuple[Answer, ...]


def render(
    report: Mapping[str, Any],
    *,
    samples: Mapping[str, Sequence[Mapping[str, Any]]],
    events: Sequence[Mapping[str, Any]],
    findings: Sequence[Mapping[str, Any]],
    recipe: str,
    environment: Mapping[str, Any],
    command: str,
) -> str:
    """The page, from what lies in a run's folder; the same input gives the same bytes.

    Args:
        report: report.json, schema tunesmith.report/1; a part may be {"value": null, "reason"}.
        samples: per arm, the rows of samples/ARM.jsonl.
        events: the rows of events.jsonl.
        findings: {"check", "severity", "rows", "message", "remedy"} each.
        recipe: recipe.yaml as text.
        environment: environment.json.
        command: what to type to do the run again.
    """
    css = (HERE / "report.css").read_text(encoding="utf-8")
    primary = "" if _is_missing(report.get("primary")) else str(report["primary"])
    rows = _grouped(samples, primary)
    arms, comparisons = _listed(report, "arms"), _listed(report, "comparisons")
    enough = report.get("data_enough")
    page = _environment().get_template("report.html.j2")
    text = page.render(
        report=report,
        css=Markup(css),
        headline=headline(report),
        learning=curve.drawing(enough) if isinstance(enough, Mapping) else None,
        digest=base64.b64encode(hashlib.sha256(css.encode()).digest()).decode(),
        primary=primary,
        arms=arms,
        metrics=_metrics(arms, primary),
        practical=list(dict.fromkeys(name for arm in arms for name in arm.get("practical", {}))),
        notes=_notes(arms),
        forest=_forest(f"{primary} of each arm", _arm_lines(arms, primary), None),
        comparisons=comparisons,
        differences=_forest(
            f"difference in {primary}", _difference_lines(comparisons, primary), 0.0
        ),
        curves=_curves(events, report),
        validations=_losses(events, "validation"),
        tradeoff=_tradeoff(report),
        picked=pick(samples, primary),
        totals={group: sum(row.group == group for row in rows) for group in ORDER},
        pair=_pair(samples),
        binary=_is_binary(rows),
        findings=sorted(findings, key=_severity),
        recipe=recipe,
        identity={key: value for key, value in environment.items() if IDENTITY.search(key)},
        surroundings={k: value for k, value in environment.items() if not IDENTITY.search(k)},
        command=command,
    )
    return _visible(text)


def pick(
    samples: Mapping[str, Sequence[Mapping[str, Any]]], primary: str, count: int = 20
) -> list[Picked]:
    """Rows that show losses and wins of the tuned model alike, losses first.

    The rows fall into four groups: tuned worse than base, better, both wrong (low), both right
    (high). The groups take turns, losses first, until `count` rows are chosen; within a group
    the order is that of a hash of the row's id, so nobody's taste enters. Without these two
    arms the last arm stands for tuned and the first for base. Graded scores closer than a
    twentieth of their range count as the same, and the middle of the range parts low from high.
    """
    rows = sorted(_grouped(samples, primary), key=lambda row: _hash(row.id))
    queues = [[row for row in rows if row.group == group] for group in ORDER]
    turns = itertools.chain.from_iterable(itertools.zip_longest(*queues))
    chosen = [row for row in turns if row is not None][:count]
    return sorted(chosen, key=lambda row: ORDER.index(row.group))


def _grouped(samples: Mapping[str, Sequence[Mapping[str, Any]]], primary: str) -> list[Picked]:
    names = _in_order(samples)
    by_arm = {arm: {str(row["id"]): row for row in samples[arm]} for arm in names}
    first, last = _pair(samples)
    scored = [
        (key, before, after)
        for key in by_arm.get(first, {})
        if (before := _score(by_arm[first][key], primary)) is not None
        and (after := _score(by_arm[last].get(key), primary)) is not None
    ]
    values = [value for _, *both in scored for value in both] or [0.0]
    same = 0.0 if set(values) <= {0.0, 1.0} else (max(values) - min(values)) / 20
    middle = 0.5 if same == 0.0 else (max(values) + min(values)) / 2
    out: list[Picked] = []
    for key, before, after in scored:
        group = "high" if (before + after) / 2 >= middle else "low"
        if abs(after - before) > same:
            group = "better" if after > before else "worse"
        row = by_arm[first][key]
        answers = tuple(
            Answer(arm, _text(by_arm[arm][key]["output"]), _score(by_arm[arm][key], primary))
            for arm in names
            if key in by_arm[arm]
        )
        out.append(Picked(group, key, _text(row["prompt"]), _text(row["reference"]), answers))
    return out


def _in_order(samples: Mapping[str, object]) -> list[str]:
    known = ("base", "prompt", "classical", "rag", "tuned", "rag+tuned", "external")
    return sorted(samples, key=lambda arm: (known.index(arm) if arm in known else 9, arm))


def _pair(samples: Mapping[str, object]) -> tuple[str, str]:
    names = _in_order(samples)
    if {"base", "tuned"} <= set(names):
        return "base", "tuned"
    return (names[0], names[-1]) if names else ("base", "tuned")


def _score(row: Mapping[str, Any] | None, primary: str) -> float | None:
    return _finite((row or {}).get("scores", {}).get(primary))


def _finite(value: object) -> float | None:
    if isinstance(value, int | float) and math.isfinite(value):
        return float(value)
    return None


def _is_binary(rows: Iterable[Picked]) -> bool:
    return {answer.score for row in rows for answer in row.answers} <= {0.0, 1.0, None}


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def _text(value: object) -> str:
    if not isinstance(value, str):
        value = "" if value is None else json.dumps(value, ensure_ascii=False, indent=1)
    more = len(value) - LONGEST_TEXT
    return value if more <= 0 else f"{value[:LONGEST_TEXT]}\n[… {more:,} more characters]"


def _visible(page: str) -> str:
    page = page.replace("\r\n", "\n")
    return UNSEEN.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", page)


def _listed(report: Mapping[str, Any], part: str) -> list[Mapping[str, Any]]:
    found = report.get(part)
    return list(found) if isinstance(found, list | tuple) else []


def _is_missing(value: Any) -> bool:
    if isinstance(value, Mapping):
        return "value" in value and value["value"] is None
    return value is None or isinstance(value, Undefined)


def _why(part: object) -> str:
    reason = part.get("reason") if isinstance(part, Mapping) else None
    return str(reason) if reason else "this run's folder does not hold it"


def _metrics(arms: Sequence[Mapping[str, Any]], primary: str) -> list[str]:
    names = dict.fromkeys(name for arm in arms for name in arm.get("scores", {}))
    return sorted(names, key=lambda name: name != primary)


def _notes(arms: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], list[str]]:
    """Why cells of the arms' table are empty: {(figure, reason): arms}."""
    notes: dict[tuple[str, str], list[str]] = {}
    for arm in arms:
        for name, part in {**arm, **arm.get("scores", {}), **arm.get("practical", {})}.items():
            if isinstance(part, Mapping) and _is_missing(part):
                notes.setdefault((name, _why(part)), []).append(str(arm["name"]))
    return notes


def _arm_lines(arms: Sequence[Mapping[str, Any]], primary: str) -> list[charts.Interval]:
    parts = [(arm["name"], arm.get("scores", {}).get(primary), arm.get("kind")) for arm in arms]
    return [
        charts.Interval(name, part["value"], part["low"], part["high"], kind == "tuned")
        for name, part, kind in parts
        if isinstance(part, Mapping) and _drawable(part, "value")
    ]


def _difference_lines(
    comparisons: Sequence[Mapping[str, Any]], primary: str
) -> list[charts.Interval]:
    return [
        charts.Interval(
            f"{part['a']} \N{MINUS SIGN} {part['b']}",
            *(part["difference"], part["low"], part["high"]),
            strong=(part["a"], part["b"]) == ("tuned", "base"),
        )
        for part in comparisons
        if part.get("metric") == primary and _drawable(part, "difference")
    ]


def _drawable(part: Mapping[str, Any], centre: str) -> bool:
    return all(_finite(part.get(key)) is not None for key in (centre, "low", "high"))


def _forest(title: str, lines: list[charts.Interval], reference: float | None) -> Markup | None:
    return charts.forest(title, lines, reference) if lines else None


def _losses(events: Iterable[Mapping[str, Any]], kind: str) -> list[charts.Point]:
    # A resumed run repeats steps: the last word on a step holds.
    found = {
        event["step"]: loss
        for event in events
        if event.get("type") == kind and (loss := _finite(event.get("loss"))) is not None
    }
    return sorted(found.items())


def _curves(events: Sequence[Mapping[str, Any]], report: Mapping[str, Any]) -> Markup | None:
    train, validation = _losses(events, "step"), _losses(events, "validation")
    if not train and not validation:
        return None
    over = report.get("overfitting")
    best = _finite(over.get("best_step")) if isinstance(over, Mapping) else None
    return charts.curves(train, validation, best)


def _tradeoff(report: Mapping[str, Any]) -> Markup | None:
    lost = report.get("forgetting")
    curve = lost.get("tradeoff") if isinstance(lost, Mapping) else None
    if not isinstance(curve, Mapping) or _is_missing(curve):
        return None
    spots = [
        (f"{point['scale']:g}", point["kl"]["value"], point["task"]["value"])
        for point in curve["points"]
        if point["kl"] and point["task"]
    ]
    return charts.tradeoff(str(curve["metric"]), spots) if spots else None


def _severity(finding: Mapping[str, Any]) -> int:
    order = ("error", "warning", "info")
    return order.index(finding["severity"]) if finding["severity"] in order else len(order)


def _meaning(part: Mapping[str, Any]) -> str:
    p = _finite(part.get("p_adjusted", part.get("p")))
    if p is not None and p >= 0.05 and not part["low"] <= 0 <= part["high"]:
        return "no difference shown: p, for as many comparisons, is 0.05 or more"
    if part["low"] > 0:
        return f"{part['a']} is better"
    if part["high"] < 0:
        return f"{part['b']} is better"
    return "no difference shown: the interval reaches zero"


def _probability(value: float) -> str:
    return "< 0.0001" if value < 0.0001 else charts.number(float(value))


def _environment() -> Environment:
    page = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    page.tests["missing"] = _is_missing
    page.filters |= {
        "why": _why,
        "number": charts.number,
        "meaning": _meaning,
        "probability": _probability,
        "duration": duration,
        "words": lambda key: str(key).replace("_", " "),
    }
    return page
