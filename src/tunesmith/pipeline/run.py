"""One run, from rows to a registered model: named steps, each going on where it was cut off."""

from __future__ import annotations

import asyncio
import shlex
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tunesmith import recipe as recipes
from tunesmith.advise import Advice, advise
from tunesmith.data.examples import Conversation
from tunesmith.data.split import read_jsonl
from tunesmith.errors import UsageError
from tunesmith.evaluate import report as pages
from tunesmith.evaluate.evaluation import Arm, Measured
from tunesmith.evaluate.prompting import PromptPlan
from tunesmith.models import fetch
from tunesmith.models.catalog import ModelSpec
from tunesmith.models.template import ChatTemplate
from tunesmith.pipeline import conclude, learn, machine, measure, prepare, quality
from tunesmith.pipeline.begin import Screen, begin
from tunesmith.pipeline.folder import Clock, RunFolder
from tunesmith.pipeline.measure import Bench
from tunesmith.pipeline.prepare import Prepared
from tunesmith.recipe import Recipe
from tunesmith.serve import engines
from tunesmith.store import Store


@dataclass
class Run:
    """A run under way; `open` finds or makes it."""

    recipe: Recipe
    folder: RunFolder
    model: ModelSpec
    template: ChatTemplate
    prepared: Prepared
    screen: Screen
    command: str
    report: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def tuned(self) -> str:
        """The tuned model's name."""
        return f"ft:{self.model.name}:local:{self.recipe.serve.suffix}:{self.folder.id}"

    def rows(self, split: str) -> list[Conversation]:
        """The rows of a split, from the run's own folder."""
        return prepare.demonstrations(read_jsonl(self.folder.data / f"{split}.jsonl"))


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
        for name, step in STEPS:
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
        recipe = recipes.read(folder.recipe)
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


def explore(run: Run) -> None:
    """What needs no tuning, on the validation rows, and the first advice."""
    if (run.folder.path / "explore.json").is_file():
        return
    found = asyncio.run(_explore(run))
    run.folder.write_json("explore.json", found)
    run.screen.say(f"first advice: {found['advice']['approach']}. {found['advice']['reasons'][0]}")


def train(run: Run) -> None:
    """The training process, unless it has ended."""
    run.recipe = learn.train(run.recipe, run.model, run.folder, run.screen.event)


def compare(run: Run) -> None:
    """All arms on the test rows, once; the server held to what the trainer said."""
    found = asyncio.run(_compare(run))
    run.report = conclude.build(
        run.folder, run.recipe, run.model, run.prepared.counts(), run.tuned, found
    )
    run.report["behind"] = quality.behind(
        run.folder,
        found.arms,
        run.rows("train"),
        primary=found.chosen.primary,
        seed=run.recipe.train.seed,
        screen=run.screen,
    )


STEPS = (("explore", explore), ("train", train), ("compare", compare))


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
    folder.write("report.html", page)
    said = run.report["verdict"]
    store.finish_run(folder.id, ship=said["ship"], sentence=said["sentence"])


@asynccontextmanager
async def _engines(run: Run, *, tuned: bool) -> AsyncGenerator[engines.Engines]:
    """The base, and beside it what was trained: in one process where that is an adapter."""
    base = engines.EngineSpec(
        run.model.folder,
        run.model.name,
        dtype=run.recipe.model.dtype,
        max_rows=measure.CONCURRENCY,
    )
    specs = [base]
    if tuned and run.folder.model.is_dir():
        specs.append(replace(base, model=run.folder.model, name=run.tuned))
    elif tuned:
        specs = [replace(base, adapters={run.tuned: run.folder.adapter})]
    run.screen.progress("starting the engine", 0, None)
    async with AsyncExitStack() as stack:
        log = run.folder.path / "engine.log"
        started = [await stack.enter_async_context(await engines.start(s, log=log)) for s in specs]
        yield engines.Engines(started)


def _bench(run: Run, engine: engines.Engines) -> Bench:
    rows = run.rows("train")
    return Bench(
        engine=engine,
        template=run.template,
        train=rows,
        chosen=measure.pick_graders(rows, run.recipe.evaluate.graders),
        max_tokens=int(run.recipe.evaluate.max_tokens),
        seed=run.recipe.train.seed,
        told=lambda what, done, total: run.screen.progress(what, done, total),
    )


async def _explore(run: Run) -> dict[str, Any]:
    held = run.rows("validation")[: measure.EXPLORE_ROWS]
    wanted = run.recipe.evaluate.arms
    async with _engines(run, tuned=False) as engine:
        bench = _bench(run, engine)
        run.screen.say(bench.chosen.reason)
        if run.recipe.data.quality_seconds:
            await quality.greet(run.folder, engine.chat(), run.template, bench.train, run.screen)
        bench = replace(bench, told=measure.as_one(bench.told, "without tuning"))

        async def plain(kind: str) -> float:
            arm = bench.arm(kind, build=None, tuned=run.tuned)
            measured = await bench.run(arm, held, measure.CONCURRENCY)
            return measured.scores[bench.chosen.primary].value

        async def prompt() -> PromptPlan | None:
            return await bench.find_prompt(held) if "prompt" in wanted else None

        kinds = [kind for kind in ("base", "classical") if kind in wanted and held]
        # At once: an engine takes as long for a few answers as for many.
        async with measure.meanwhile(prompt()) as search:
            scores = {kind: await plain(kind) for kind in kinds}
            plan = await search
        if plan is not None and plan.tried:
            scores["prompt"] = plan.tried[0][1]
    advice = advise(
        scores, metric=bench.chosen.primary, rows=len(bench.train), measured_on=len(held)
    )
    return {
        "scores": scores,
        "prompt": None if plan is None else plan.name,
        "description": None if plan is None else plan.description,
        "tried": [] if plan is None else [list(pair) for pair in plan.tried],
        "left_out": [] if plan is None else list(plan.left_out),
        "advice": asdict(advice),
    }


async def _compare(run: Run) -> conclude.Findings:
    explored = run.folder.read_json("explore.json")
    held = run.rows("validation")
    rows = (run.rows("test") or held)[: run.recipe.evaluate.limit]
    async with _engines(run, tuned=True) as engine:
        parity = await measure.check_parity(
            engine, run.tuned, run.folder.path / "parity.json", held or run.rows("train")
        )
        bench = _bench(run, engine)
        arms = await _arms(run, bench, explored["prompt"])
        measured: dict[str, Measured] = {}
        for arm in arms:
            measured[arm.name] = await bench.run(arm, rows, measure.CONCURRENCY)
            lines = [measure.sample_row(sample) for sample in measured[arm.name].samples]
            run.folder.write_lines(f"samples/{arm.name}.jsonl", lines)
        # At once: nobody's latency is reported any more.
        bench = replace(bench, told=measure.as_one(bench.told, "noise and advice"))
        async with measure.meanwhile(bench.noise(measured.get("base"), rows)) as again:
            advice = await _final_advice(bench, held, explored, arms)
            noise = await again
    variants = [{"name": name, "validation": score} for name, score in explored["tried"]]
    return conclude.Findings(measured, bench.chosen, noise, parity, variants, advice)


async def _arms(run: Run, bench: Bench, prompt: str | None) -> Sequence[Arm]:
    build = None
    if prompt is not None:
        build = (await bench.find_prompt(run.rows("validation"), known=prompt)).build
    return [
        bench.arm(kind, build=build, tuned=run.tuned)
        for kind in run.recipe.evaluate.arms
        if kind != "prompt" or build is not None
    ]


async def _final_advice(
    bench: Bench, held: list[Conversation], explored: dict[str, Any], arms: Sequence[Arm]
) -> Advice:
    """The first advice again, with the tuned arm on the same validation rows."""
    scores = dict(explored["scores"])
    some = held[: measure.EXPLORE_ROWS]
    for arm in arms:
        if arm.kind == "tuned" and some:
            measured = await bench.run(arm, some, measure.CONCURRENCY)
            scores["tuned"] = measured.scores[bench.chosen.primary].value
    return advise(scores, metric=bench.chosen.primary, rows=len(bench.train), measured_on=len(some))


def typed(arguments: Sequence[str]) -> str:
    """The command line as it can be typed again."""
    return shlex.join(["tunesmith", *arguments])
