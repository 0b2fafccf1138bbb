"""A run under way: what every step of it works on."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tunesmith.data.examples import Conversation
from tunesmith.data.split import read_jsonl
from tunesmith.models.catalog import ModelSpec
from tunesmith.models.template import ChatTemplate
from tunesmith.pipeline import measure, prepare
from tunesmith.pipeline.begin import Screen
from tunesmith.pipeline.folder import RunFolder
from tunesmith.pipeline.measure import Bench
from tunesmith.pipeline.prepare import Prepared
from tunesmith.recipe import Recipe
from tunesmith.serve import engines


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

    @property
    def reader(self) -> str:
        """What the engine calls the model that was tuned to read passages."""
        return f"{self.tuned}-rag"

    @property
    def reading(self) -> RunFolder:
        """Where the arms that look things up keep what is theirs."""
        return RunFolder(self.folder.path / "rag")

    def rows(self, split: str) -> list[Conversation]:
        """The rows of a split, from the run's own folder."""
        return prepare.demonstrations(read_jsonl(self.folder.data / f"{split}.jsonl"))


@asynccontextmanager
async def open_engines(
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
    trained = {run.tuned: run.folder, run.reader: run.reading} if tuned else {}
    adapters = {name: part.adapter for name, part in trained.items() if part.adapter.is_dir()}
    models = {name: part.model for name, part in trained.items() if part.model.is_dir()}
    specs = [replace(base, adapters={**adapters, **(beside or {})})]
    specs += [replace(base, model=folder, name=name) for name, folder in models.items()]
    run.screen.progress("starting the engine", 0, None)
    async with AsyncExitStack() as stack:
        log = run.folder.path / "engine.log"
        started = [await stack.enter_async_context(await engines.start(s, log=log)) for s in specs]
        yield engines.Engines(started)


def bench_of(run: Run, engine: engines.Engine | engines.Engines) -> Bench:
    """What the measurements of a run share."""
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
