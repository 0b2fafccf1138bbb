"""One run, from rows to a registered model: named steps, each going on where it was cut off."""

from __future__ import annotations

import asyncio
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith import recipe as recipes
from tunesmith.errors import UsageError
from tunesmith.evaluate import report as pages
from tunesmith.models import fetch
from tunesmith.models.template import ChatTemplate
from tunesmith.pipeline import (
    conclude,
    curve,
    external,
    forget,
    learn,
    machine,
    measure,
    prepare,
    quality,
    retrieve,
)
from tunesmith.pipeline import cost as costing
from tunesmith.pipeline.begin import Screen, begin
from tunesmith.pipeline.compare import compare
from tunesmith.pipeline.explore import explore
from tunesmith.pipeline.folder import Clock, RunFolder
from tunesmith.pipeline.under_way import Run, bench_of, open_engines
from tunesmith.recipe import Recipe
from tunesmith.store import Store


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to."""

    folder: Path
    report: dict[str, Any]

    @property
    def ship(self) -> bool:
        """Whether the verdict is to ship."""
        return bool(self.report["verdict"].get("ship"))


def run(recipe: Recipe, *, out: Path | None, screen: Screen, command: str, ask: bool) -> Outcome:
    """The whole loop. A finished run returns its result; an unfinished one goes on.

    Args:
        out: the run's folder; None finds it by the hash of recipe and data.
        command: what was typed, for the report.
        ask: stop after the first advice.

    Raises:
        TunesmithError: whatever a person can mend.
    """
    began = time.monotonic()
    prepare.comparable(recipe)
    forget.gather(recipe)
    external.keys(recipe)
    under_way = open_run(recipe, out=out, screen=screen, command=command)
    folder = under_way.folder
    if folder.finished:
        screen.say(f"this run is finished: {folder.path}")
        return Outcome(folder.path, folder.read_json("report.json"))
    prepare.measurable(under_way.prepared)
    clock = Clock(folder, began)
    clock.started("check")
    quality.glance(
        folder,
        under_way.rows("train"),
        seconds=under_way.recipe.data.quality_seconds,
        seed=under_way.recipe.train.seed,
        screen=screen,
    )
    clock.done("check")
    with Store.at(fetch.home()) as store:
        if store.find_run(folder.id) is None:
            store.add_run(folder.id, folder=folder.path, key=folder.id)
        for name, step in steps(under_way.recipe):
            clock.started(name)
            step(under_way)
            clock.done(name)
            if ask and name == "explore":
                return Outcome(folder.path, _asked(folder))
        finish(under_way, store)
    return Outcome(folder.path, under_way.report)


def _asked(folder: RunFolder) -> dict[str, Any]:
    """What `--ask` comes to: the first advice, and no verdict."""
    verdict = {"value": None, "reason": "--ask stops before training"}
    advice = folder.read_json("explore.json")["advice"]
    return {"run": folder.id, "advice": advice, "verdict": verdict}


def open_run(recipe: Recipe, *, out: Path | None, screen: Screen, command: str) -> Run:
    """Find the model, read the data, and find or make the run's folder.

    Raises:
        UsageError: `out` holds another run, or the method does not learn from such rows.
        DataError: the data is refused.
    """
    machine.able(recipe)
    prepare.learnable(recipe)
    model = fetch.resolve(recipe.model.name, revision=recipe.model.revision, say=screen.say)
    machine.servable(recipe, model.folder)
    template = ChatTemplate.load(model.folder)
    prepared = prepare.gather(
        recipe.reading,
        template,
        seed=recipe.train.seed,
        told=lambda done: screen.progress("reading", done, None),
    )
    key = prepare.run_key(recipe, prepared, model, template)
    folder = RunFolder(out.resolve() if out else fetch.home() / "runs" / key[:12])
    if (folder.path / "environment.json").is_file():
        if folder.read_json("environment.json").get("key") != key:
            raise UsageError(
                f"{folder.path} holds another run (other rows, recipe, model or template)",
                expected="an empty folder, or the same command",
                remedy="Give another --out.",
            )
        recipe = recipes.with_budgets(recipes.read(folder.recipe), recipe)
    else:
        _ours(folder)
        recipe = begin(recipe, folder, model, template, prepared, screen, key)
    return Run(recipe, folder, model, template, prepared, screen, command)


def _ours(folder: RunFolder) -> None:
    """Refuse to write among other files: a run would replace the user's own data/train.jsonl."""
    events = folder.path / "events.jsonl"
    if folder.path.exists() and not events.is_file() and any(folder.path.iterdir()):
        raise UsageError(
            f"{folder.path} holds other files",
            expected="an empty folder, or that of a run",
            remedy="Give another --out.",
        )
    folder.emit({"type": "opened"})


def forecast(run: Run) -> None:
    """What training will take, from a few real steps."""
    costing.before(run.recipe, run.model, run.folder, run.screen.say)


def train(run: Run) -> None:
    """The training process, unless it has ended."""
    run.recipe = learn.train(run.recipe, run.model, run.folder, run.screen.event)


def draw_curve(run: Run) -> None:
    """Trainings on parts of the rows, where they are asked for or cheap."""
    rows = curve.Rows(run.rows("train"), run.rows("validation"))
    run.recipe = curve.draw(
        run.recipe, run.model, run.folder, rows, run.screen, lambda engine: bench_of(run, engine)
    )


def probe(run: Run) -> None:
    """What tuning cost: general ability and memory of base and tuned, unless it is left out."""
    if run.recipe.forgetting.probe and not (run.folder.path / forget.FILE).is_file():
        asyncio.run(_probe(run))


async def _probe(run: Run) -> None:
    held = run.rows("validation")[: measure.EXPLORE_ROWS]
    with forget.scaled(run.folder, run.recipe) as scales:
        async with open_engines(run, tuned=True, beside=scales) as engine:
            bench = bench_of(run, engine)
            await forget.measure(run.folder, run.recipe, bench, run.tuned, held)


Step = tuple[str, Callable[[Run], None]]
STEPS: tuple[Step, ...] = (
    ("forecast", forecast),
    ("explore", explore),
    ("train", train),
    ("curve", draw_curve),
    ("probe", probe),
    ("compare", compare),
)


def steps(recipe: Recipe) -> tuple[Step, ...]:
    """The steps of a run; with documents a second model is trained before the comparison."""
    more: tuple[Step, ...] = (("train_rag", retrieve.train),) if "rag+tuned" in recipe.arms else ()
    return (*STEPS[:-1], *more, STEPS[-1])


def finish(run: Run, store: Store) -> None:
    """Register the model and write the report."""
    folder = run.folder
    own = folder.model.is_dir()
    store.register_model(
        run.tuned,
        base=run.model.name,
        base_hash=fetch.weights_hash(folder.model) if own else run.model.weights_hash,
        base_folder=folder.model if own else run.model.folder,
        adapter_folder=None if own else folder.adapter,
        run_id=folder.id,
    )
    run.report = conclude.with_timings(run.report, folder)
    samples = {
        arm["name"]: folder.read_lines(f"samples/{arm['name']}.jsonl") for arm in run.report["arms"]
    }
    page = pages.render(
        run.report,
        samples=samples,
        events=folder.events(),
        findings=folder.read_json("findings.json"),
        recipe=recipes.dump(run.recipe),
        environment=folder.read_json("environment.json"),
        command=run.command,
    )
    folder.write_json("report.json", run.report)
    run.report = folder.read_json("report.json")
    folder.write("report.html", page)
    said = run.report["verdict"]
    store.finish_run(folder.id, ship=said["ship"], sentence=said["sentence"])


def typed(arguments: Sequence[str]) -> str:
    """The command line as it can be typed again."""
    return shlex.join(["tunesmith", *arguments])
