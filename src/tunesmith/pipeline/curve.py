"""The learning curve of a run: trainings on parts of its rows in curve/SEED-SHARE/, scored together.

The training and the validation rows are all that it reads. The run's own adapter is the point of all
rows and the first seed.
"""

from __future__ import annotations

import asyncio
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from itertools import pairwise
from typing import Any

import numpy as np

from tunesmith import recipe as recipes
from tunesmith.chat import answer_text
from tunesmith.data import fingerprint
from tunesmith.data.examples import Conversation
from tunesmith.data.split import write_jsonl
from tunesmith.errors import DiskFull, FolderBusy, TrainerCrashed, TrainingError
from tunesmith.evaluate import curve, power
from tunesmith.evaluate.curve import SHARES, Point
from tunesmith.evaluate.evaluation import Arm, Measured
from tunesmith.models.catalog import ModelSpec
from tunesmith.pipeline import learn, measure, prepare
from tunesmith.pipeline.begin import Screen
from tunesmith.pipeline.folder import TRAINING, Event, RunFolder, unmeasured
from tunesmith.pipeline.measure import Bench
from tunesmith.recipe import Recipe
from tunesmith.serve import engines
from tunesmith.train import auto
from tunesmith.train.spec import steps

Part = tuple[int, str]
"""Seed, counted from the recipe's, and share of the rows."""
OWN: Part = (0, "all")
PARTS: Sequence[Part] = ((0, "quarter"), (0, "half"), (1, "quarter"), (1, "half"), (1, "all"))
AUTO_SECONDS = 360.0
"""What a curve that nobody asked for may take."""
START_SECONDS = 15.0
"""A training process until its first step, and what it writes at its end."""
LEAST = {"on": (16, 2), "auto": (100, 40)}
"""Training and validation rows without which a curve says nothing, or not enough to wait for."""


@dataclass(frozen=True)
class Rows:
    """What a curve is made from."""

    train: Sequence[Conversation]
    held: Sequence[Conversation]


def draw(
    recipe: Recipe,
    model: ModelSpec,
    folder: RunFolder,
    rows: Rows,
    screen: Screen,
    bench: Callable[[engines.Engine], Bench],
) -> Recipe:
    """Train and score the points, unless that is done, or is not to be; it goes on where it was cut.

    Args:
        recipe: without any `auto` but perhaps the curve's.

    Returns:
        The recipe with what `evaluate.curve` became, as the folder has it now.
    """
    if not (folder.path / "curve" / "plan.json").is_file():
        folder.write_json("curve/plan.json", plan(recipe, model, folder, rows))
    parts: list[Part] = [(seed, share) for seed, share in _plan(folder)["parts"]]
    if recipe.evaluate.curve == "auto":
        recipe = recipes.with_values(recipe, {"evaluate.curve": bool(parts)})
        folder.write(folder.recipe.name, recipes.dump(recipe))
    if (folder.path / "curve" / "scores.json").is_file():
        return recipe
    screen.say(f"learning curve: {_plan(folder)['reason']}")
    if parts:
        try:
            sizes = _train(recipe, model, folder, rows, parts, screen)
        except (DiskFull, FolderBusy, TrainerCrashed):
            raise
        except TrainingError as error:
            # A part that does not train says nothing against the model that did.
            folder.write_json("curve/plan.json", {"parts": [], "reason": str(error)})
            screen.say(f"learning curve: {error}")
            return recipe
        found = asyncio.run(_score(recipe, model, folder, rows, sizes, bench))
        folder.write_json("curve/scores.json", found)
    return recipe


def plan(recipe: Recipe, model: ModelSpec, folder: RunFolder, rows: Rows) -> dict[str, Any]:
    """Which parts are trained, and why these: `on` all, `auto` as many as take a few minutes."""
    asked = recipe.evaluate.curve
    least = LEAST["auto" if asked == "auto" else "on"]
    if asked is False:
        return {"parts": [], "reason": "left out, as evaluate.curve=off says"}
    if not folder.adapter.is_dir():
        return {"parts": [], "reason": "left out, as no adapter was trained but all weights"}
    if len(rows.train) < least[0] or len(rows.held) < least[1]:
        return {
            "parts": [],
            "reason": f"left out: {len(rows.train):,} training and {len(rows.held):,} validation "
            f"rows are too few for it (at least {least[0]} and {least[1]})",
        }
    each = _seconds_a_row(folder.events())
    costs = [_seconds(recipe, model, len(rows.train), share, each) for _, share in PARTS]
    choices = [PARTS] if asked is True else [PARTS, PARTS[:4]]
    for parts in choices:
        seconds = math.fsum(costs[: len(parts)])
        if asked is True or seconds <= AUTO_SECONDS:
            reason = f"{len(parts)} trainings on parts of the rows, about {_minutes(seconds)}"
            return {"parts": parts, "reason": reason}
    reason = (
        f"left out, as it would take about {_minutes(math.fsum(costs[:4]))}; "
        "--set evaluate.curve=on draws it"
    )
    return {"parts": [], "reason": reason}


def _plan(folder: RunFolder) -> dict[str, Any]:
    return folder.read_json("curve/plan.json")


def _minutes(seconds: float) -> str:
    return f"{max(1, math.ceil(seconds / 60))} min"


def _seconds_a_row(events: Sequence[Event]) -> float:
    """What the run's own training took for each row of a step, validations included."""
    told = [event for event in events if event["type"] in TRAINING | {"training", "trained"}]
    at = [datetime.fromisoformat(event["at"]) for event in told]
    took = [
        (later - earlier).total_seconds()
        for (earlier, later), event in zip(pairwise(at), told[1:], strict=True)
        # Between a kill and the next start nothing was trained.
        if event["type"] != "training"
    ]
    return math.fsum(took) / max(1, sum(e["rows"] for e in told if e["type"] == "step"))


def _seconds(recipe: Recipe, model: ModelSpec, count: int, share: str, each: float) -> float:
    rows = round(count * SHARES[share])
    part = sized(recipe, count, rows, prepare.width(model.folder))
    return each * rows * float(part.train.epochs) + START_SECONDS


def sized(recipe: Recipe, count: int, rows: int, width: int) -> Recipe:
    """The recipe as `auto` would have it for `rows` training rows instead of `count`.

    Values that are not what `auto` chooses for `count` were given, and stay.
    """
    full = recipe.method.adapter == "full"

    def chosen(size: int, given: Mapping[str, float]) -> dict[str, float]:
        epochs = given.get("train.epochs", auto.epochs(size).value)
        batch = given.get("train.batch_rows", auto.batch_rows(size).value)
        total = steps(size, int(batch), epochs)
        return {
            "train.epochs": epochs,
            "train.batch_rows": batch,
            "train.learning_rate": auto.learning_rate(width, total, batch, full=full).value,
            "train.save_every": auto.save_every(total).value,
        }

    train = recipe.train
    now = {
        "train.epochs": float(train.epochs),
        "train.batch_rows": int(train.batch_rows),
        "train.learning_rate": float(train.learning_rate),
        "train.save_every": int(train.save_every),
    }
    first = chosen(count, {})
    given = {
        key: now[key] for key in ("train.epochs", "train.batch_rows") if now[key] != first[key]
    }
    usual = chosen(count, given)
    given |= {key: value for key, value in now.items() if value != usual[key]}
    return recipes.with_values(recipe, {**chosen(rows, given), **given})


def _train(
    recipe: Recipe,
    model: ModelSpec,
    folder: RunFolder,
    rows: Rows,
    parts: Sequence[Part],
    screen: Screen,
) -> dict[Part, int]:
    """Train each part that is not trained yet; the rows of each."""
    strata, groups = _strata(recipe, rows.train), near(rows.train)
    width, seed = prepare.width(model.folder), recipe.train.seed
    sizes: dict[Part, int] = {}
    for number, (offset, share) in enumerate(parts, start=1):
        nested = curve.nested(strata, groups, list(SHARES.values()), seed + offset)
        own = [rows.train[index] for index in nested[list(SHARES).index(share)]]
        sizes[offset, share] = len(own)
        part = part_folder(folder, offset, share)
        asked = sized(recipe, len(rows.train), len(own), width)
        asked = recipes.with_values(asked, {"train.seed": seed + offset})
        train_part(asked, model, part, Rows(own, rows.held), _told(screen, number, len(parts)))
    return sizes


def part_folder(folder: RunFolder, offset: int, share: str) -> RunFolder:
    """Where a part is trained."""
    return RunFolder(folder.path / "curve" / f"{offset}-{share}")


def train_part(
    recipe: Recipe,
    model: ModelSpec,
    part: RunFolder,
    rows: Rows,
    happened: Callable[[Event], None],
) -> None:
    """One training beside the run's own, unless it has ended; its checkpoints go with its end."""
    if not learn.trained(part):
        part.data.mkdir(parents=True, exist_ok=True)
        write_jsonl(rows.train, part.data / "train.jsonl")
        write_jsonl(rows.held, part.data / "validation.jsonl")
        learn.train(recipe, model, part, happened)
    shutil.rmtree(part.path / "checkpoints", ignore_errors=True)


def _told(screen: Screen, number: int, count: int) -> Callable[[Event], None]:
    total = 0

    def tell(event: Event) -> None:
        nonlocal total
        if event["type"] == "training":
            total = event["steps"]
            screen.say(f"learning curve, {number} of {count}: {event['rows']:,} rows")
        elif event["type"] == "step":
            screen.progress(f"learning curve, {number} of {count}", event["step"], total)

    return tell


def _strata(recipe: Recipe, rows: Sequence[Conversation]) -> list[str]:
    chosen = measure.pick_graders(rows, recipe.evaluate.graders)
    return [answer_text(row.answer) if chosen.task == "labels" else "" for row in rows]


def near(rows: Sequence[Conversation]) -> list[int]:
    """The group of near-duplicates of each row, and of pieces of one source row."""
    places = [f"{row.source.file}:{row.source.line}" for row in rows]
    groups = fingerprint.group(
        fingerprint.Signer(rows[:1000]).sign(rows),
        np.array([fingerprint.prompt_key(row, normal=True) for row in rows], np.uint64),
        np.unique(places, return_inverse=True)[1],
    )
    return groups.tolist()


async def _score(
    recipe: Recipe,
    model: ModelSpec,
    folder: RunFolder,
    rows: Rows,
    sizes: Mapping[Part, int],
    bench: Callable[[engines.Engine], Bench],
) -> dict[str, Any]:
    """All adapters in one engine, on the validation rows."""
    adapters = {
        f"{seed}-{share}": part_folder(folder, seed, share).adapter for seed, share in sizes
    }
    adapters["{}-{}".format(*OWN)] = folder.adapter
    spec = engines.EngineSpec(
        model.folder,
        model.name,
        adapters=adapters,
        dtype=recipe.model.dtype,
        max_rows=measure.CONCURRENCY,
    )
    found: dict[Part, Measured] = {}
    async with await engines.start(spec, log=folder.path / "engine.log") as engine:
        shared = bench(engine)
        shared = replace(shared, told=measure.as_one(shared.told, "learning curve"))
        for seed, share in (*sizes, OWN):
            arm = Arm(f"{seed}-{share}", "tuned", engine.chat(f"{seed}-{share}"))
            found[seed, share] = await shared.run(arm, rows.held, measure.CONCURRENCY)
    metric = shared.chosen.primary
    answered = [measured.samples for measured in found.values()]
    kept = [
        place
        for place, same in enumerate(zip(*answered, strict=True))
        if all(metric in sample.scores for sample in same)
    ]
    count = {**sizes, OWN: len(rows.train)}
    points = [
        Point(*part, count[part], tuple(measured.samples[i].scores[metric] for i in kept))
        for part, measured in found.items()
    ]
    return {
        "metric": metric,
        "clusters": [answered[0][place].cluster for place in kept],
        "points": [asdict(point) for point in points],
    }


def data_enough(
    folder: RunFolder, recipe: Recipe, arms: Mapping[str, Measured], metric: str
) -> dict[str, Any]:
    """`data_enough` of report.json: the curve with its forecast, and what the test rows can tell."""
    part: dict[str, Any] = dict.fromkeys(
        ("curve", "doubling", "rows_for_goal"), unmeasured(_plan(folder)["reason"])
    )
    if (folder.path / "curve" / "scores.json").is_file():
        scored = folder.read_json("curve/scores.json")
        points = [
            Point(p["seed"], p["share"], p["rows"], tuple(p["scores"])) for p in scored["points"]
        ]
        goal = recipe.evaluate.goal
        part = curve.described(points, scored["clusters"], metric=scored["metric"], goal=goal)
    return {**part, "power": _power(arms, metric)}


def _power(arms: Mapping[str, Measured], metric: str) -> dict[str, Any]:
    """Of the tuned arm against each other one, the best of which the sentence is about."""
    tuned = arms.get("tuned")
    others = [arm for arm in arms.values() if arm.arm != "tuned" and metric in arm.scores]
    if tuned is None or not others:
        return unmeasured("there is no tuned arm and another one beside it")
    others.sort(key=lambda arm: -arm.scores[metric].value)
    pairs = [
        {"a": "tuned", "b": arm.arm, **power.described(spread(tuned, arm, metric), differ=between)}
        for arm in others
        for between in (f"between tuned and {arm.arm}",)
    ]
    return {"pairs": pairs, "sentence": pairs[0].get("sentence", pairs[0].get("reason"))}


def spread(a: Measured, b: Measured, metric: str) -> power.Spread:
    """Of the rows that both arms answered."""
    theirs = {s.id: s.scores[metric] for s in b.samples if metric in s.scores}
    mine = [s for s in a.samples if metric in s.scores and s.id in theirs]
    return power.measured(
        [sample.scores[metric] - theirs[sample.id] for sample in mine],
        [sample.cluster for sample in mine],
    )
