"""One run, from rows to a registered model: named steps, each going on where it was cut off."""

from __future__ import annotations

import asyncio
import shlex
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tunesmith import recipe as recipes
from tunesmith.advise import Advice, advise
from tunesmith.data.examples import Conversation
from tunesmith.data.split import read_jsonl
from tunesmith.errors import UsageError
from tunesmith.evaluate import report as pages
from tunesmith.evaluate.evaluation import Arm, Build, Measured
from tunesmith.evaluate.prompting import PromptPlan
from tunesmith.models import fetch
from tunesmith.models.catalog import ModelSpec
from tunesmith.models.template import ChatTemplate
from tunesmith.pipeline import advice as advising
from tunesmith.pipeline import (
    conclude,
    curve,
    decide,
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
from tunesmith.pipeline.folder import Clock, RunFolder
from tunesmith.pipeline.measure import Bench
from tunesmith.pipeline.prepare import Prepared
from tunesmith.recipe import RETRIEVING, Recipe
from tunesmith.serve import engines
from tunesmith.store import Store

ADVICE_ROWS = 100
"""Validation rows behind the final advice: enough to tell a lead of a tenth or two."""


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


def draw_curve(run: Run) -> None:
    """Trainings on parts of the rows, where they are asked for or cheap."""
    rows = curve.Rows(run.rows("train"), run.rows("validation"))
    run.recipe = curve.draw(
        run.recipe, run.model, run.folder, rows, run.screen, lambda engine: _bench(run, engine)
    )


def probe(run: Run) -> None:
    """What tuning cost: general ability and memory of base and tuned, unless it is left out."""
    if run.recipe.forgetting.probe and not (run.folder.path / forget.FILE).is_file():
        asyncio.run(_probe(run))


async def _probe(run: Run) -> None:
    held = run.rows("validation")[: measure.EXPLORE_ROWS]
    with forget.scaled(run.folder, run.recipe) as scales:
        async with _engines(run, tuned=True, beside=scales) as engine:
            bench = _bench(run, engine)
            await forget.measure(run.folder, run.recipe, bench, run.tuned, held)


def compare(run: Run) -> None:
    """All arms on the test rows, once; the server held to what the trainer said."""
    found = asyncio.run(_compare(run))
    run.report = conclude.build(
        run.folder, run.recipe, run.model, run.prepared.counts(), run.tuned, found
    )
    run.report["data_enough"] = curve.data_enough(
        run.folder, run.recipe, found.arms, found.chosen.primary
    )
    theirs = run.recipe.external.model if run.recipe.external else None
    costing.into(run.report, run.folder, run.recipe, found.arms, external=theirs)
    run.report["behind"] = quality.behind(
        run.folder,
        found.arms,
        run.rows("train"),
        primary=found.chosen.primary,
        seed=run.recipe.train.seed,
        screen=run.screen,
    )


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
    folder.write("report.html", page)
    said = run.report["verdict"]
    store.finish_run(folder.id, ship=said["ship"], sentence=said["sentence"])


@asynccontextmanager
async def _engines(
    run: Run, *, tuned: bool, beside: Mapping[str, Path] | None = None
) -> AsyncGenerator[engines.Engines]:
    """The base, and beside it what was trained: in one process where these are adapters.

    Args:
        beside: more adapters by their names.
    """
    base = engines.EngineSpec(
        run.model.folder,
        run.model.name,
        dtype=run.recipe.model.dtype,
        max_rows=measure.CONCURRENCY,
    )
    trained = (
        {run.tuned: run.folder, retrieve.name(run): retrieve.place(run.folder)} if tuned else {}
    )
    adapters = {name: part.adapter for name, part in trained.items() if part.adapter.is_dir()}
    models = {name: part.model for name, part in trained.items() if part.model.is_dir()}
    specs = [replace(base, adapters={**adapters, **(beside or {})})]
    specs += [replace(base, model=folder, name=name) for name, folder in models.items()]
    run.screen.progress("starting the engine", 0, None)
    async with AsyncExitStack() as stack:
        log = run.folder.path / "engine.log"
        started = [await stack.enter_async_context(await engines.start(s, log=log)) for s in specs]
        yield engines.Engines(started)


def _bench(run: Run, engine: engines.Engine | engines.Engines) -> Bench:
    rows = run.rows("train")
    return Bench(
        engine=engine,
        template=run.template,
        train=rows,
        chosen=measure.pick_graders(rows, run.recipe.evaluate.graders),
        max_tokens=int(run.recipe.evaluate.max_tokens),
        seed=run.recipe.train.seed,
        prompt_budget=run.recipe.evaluate.prompt_budget,
        told=lambda what, done, total: run.screen.progress(what, done, total),
    )


async def _explore(run: Run) -> dict[str, Any]:
    validation = measure.shuffled(run.rows("validation"), run.recipe.train.seed)
    held = validation[: measure.EXPLORE_ROWS]
    wanted = run.recipe.arms
    async with _engines(run, tuned=False) as engine:
        bench = _bench(run, engine)
        run.screen.say(bench.chosen.reason)
        if run.recipe.data.quality_seconds:
            await quality.greet(run.folder, engine.chat(), run.template, bench.train, run.screen)
        made = await external.proposals(run.recipe, bench, run.screen)
        tests, texts = run.prepared.counts()["test"], made["texts"]
        theirs = await external.explore(run.recipe, bench, validation, tests, texts, run.screen)
        if "prompt" in wanted:
            run.screen.say(f"prompt search: at most {bench.prompt_budget:,} answers")
        bench = replace(bench, told=measure.as_one(bench.told, "without tuning"))

        async def answers(kind: str, build: Build | None = None) -> list[dict[str, Any]]:
            arm = bench.arm(kind, build=build, tuned=run.tuned)
            measured = await bench.run(arm, held, measure.CONCURRENCY)
            return advising.answers(measured, bench.chosen.primary)

        async def prompt() -> PromptPlan | None:
            found = "prompt" in wanted
            return await bench.find_prompt(validation, texts=texts) if found else None

        kinds = [kind for kind in ("base", "classical") if kind in wanted and held]
        # At once: an engine takes as long for a few answers as for many.
        async with (
            measure.meanwhile(prompt()) as search,
            measure.meanwhile(retrieve.explore(run, bench, held)) as look,
        ):
            rows = {kind: await answers(kind) for kind in kinds}
            plan = await search
            settled = await look
        if plan is not None:
            run.screen.say(f"prompt search: {plan.description}")
            if plan.tried:
                rows["prompt"] = await answers("prompt", plan.build)
        if settled is not None:
            looked_up = settled.pop("rows")
            rows |= {"rag": looked_up} if "rag" in wanted else {}
    advice = _advice(run, bench, rows)
    return {
        "rows": rows,
        "prompt": None if plan is None else plan.name,
        "tried": [] if plan is None else [list(pair) for pair in plan.tried],
        "search": None if plan is None else measure.search_entry(plan),
        "proposals": made,
        "external": theirs,
        "rag": settled,
        "advice": advising.entry(advice),
    }


def _advice(run: Run, bench: Bench, rows: advising.Answers) -> Advice:
    """The advice from answers to validation rows."""
    planned = run.folder.read_json(costing.FILE)
    found = advising.evidence(
        rows,
        metric=bench.chosen.primary,
        train=len(bench.train),
        recipe=run.recipe,
        costs=advising.training_costs(planned, run.recipe.facts),
    )
    return advise(found)


async def _compare(run: Run) -> conclude.Findings:
    explored = run.folder.read_json("explore.json")
    held = run.rows("validation")
    seed = run.recipe.train.seed
    rows = measure.shuffled(run.rows("test") or held, seed)[: run.recipe.evaluate.limit]
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(_engines(run, tuned=True))
        parity = await measure.check_parity(
            engine, run.tuned, run.folder.path / "parity.json", held or run.rows("train")
        )
        bench = _bench(run, engine)
        arms = await _arms(run, bench, explored)
        details = _prompt_details(explored)
        if (settled := explored["rag"]) is not None:
            opening = retrieve.opened(run, settled, bench.chosen)
            library = await stack.enter_async_context(opening)
            reading = [kind for kind in RETRIEVING if kind in run.recipe.arms]
            arms += [retrieve.arm(kind, run, bench, library) for kind in reading]
            details |= await retrieve.details(run, engine, library, settled, rows)
        measured: dict[str, Measured] = {}
        for arm in arms:
            measured[arm.name] = await bench.run(arm, rows, measure.CONCURRENCY)
            _write_samples(run, measured[arm.name])
        theirs, about = await external.compare(run.recipe, bench, explored, rows)
        if theirs is not None:
            measured[theirs.arm] = theirs
            _write_samples(run, theirs)
        beside = await decide.beside(
            bench, arms, measured, rows, run.recipe, run.folder, run.screen,
            rows_at_once=measure.CONCURRENCY,
        )  # fmt: skip
        # At once: nobody's latency is reported any more.
        bench = replace(bench, told=measure.as_one(bench.told, "noise and advice"))
        async with measure.meanwhile(bench.noise(measured.get("base"), rows)) as again:
            some = measure.shuffled(held, seed)[:ADVICE_ROWS]
            advice = await _final_advice(run, bench, some, arms)
            noise = await again
    return conclude.Findings(measured, bench.chosen, noise, parity, details, advice, about, beside)


def _prompt_details(explored: dict[str, Any]) -> dict[str, dict[str, Any]]:
    if explored["search"] is None:
        return {}
    variants = [{"name": name, "validation": score} for name, score in explored["tried"]]
    search = {**explored["search"], "proposals": explored["proposals"]}
    return {"prompt": {"variants": variants, "search": search}}


def _write_samples(run: Run, measured: Measured) -> None:
    lines = [measure.sample_row(sample) for sample in measured.samples]
    run.folder.write_lines(f"samples/{measured.arm}.jsonl", lines)


async def _arms(run: Run, bench: Bench, explored: dict[str, Any]) -> list[Arm]:
    build, prompt = None, explored["prompt"]
    if prompt is not None:
        texts = explored["proposals"]["texts"]
        build = (await bench.find_prompt((), texts=texts, known=prompt)).build
    return [
        bench.arm(kind, build=build, tuned=run.tuned)
        for kind in run.recipe.arms
        if kind not in (*RETRIEVING, "external") and (kind != "prompt" or build is not None)
    ]


async def _final_advice(
    run: Run, bench: Bench, some: Sequence[Conversation], arms: Sequence[Arm]
) -> Advice:
    """The advice once more, from more validation rows, with the tuned arms among the others."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for arm in arms if some else ():
        measured = await bench.run(arm, some, measure.CONCURRENCY)
        rows[arm.kind] = advising.answers(measured, bench.chosen.primary)
    return _advice(run, bench, rows)


def typed(arguments: Sequence[str]) -> str:
    """The command line as it can be typed again."""
    return shlex.join(["tunesmith", *arguments])
