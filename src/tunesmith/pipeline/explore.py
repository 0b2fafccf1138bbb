"""What needs no tuning, on the validation rows, and the first advice."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from tunesmith.advise import Advice, advise
from tunesmith.evaluate.evaluation import Build
from tunesmith.evaluate.prompting import PromptPlan
from tunesmith.pipeline import advice as advising
from tunesmith.pipeline import cost as costing
from tunesmith.pipeline import external, measure, quality, retrieve
from tunesmith.pipeline.measure import Bench
from tunesmith.pipeline.under_way import Run, bench_of, open_engines


def explore(run: Run) -> None:
    """What needs no tuning, on the validation rows, and the first advice."""
    if (run.folder.path / "explore.json").is_file():
        return
    found = asyncio.run(_explore(run))
    run.folder.write_json("explore.json", found)
    run.screen.say(f"first advice: {found['advice']['approach']}. {found['advice']['reasons'][0]}")


async def _explore(run: Run) -> dict[str, Any]:
    validation = measure.shuffled(run.rows("validation"), run.recipe.train.seed)
    held = validation[: measure.EXPLORE_ROWS]
    wanted = run.recipe.arms
    async with open_engines(run, tuned=False) as engine:
        bench = bench_of(run, engine)
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
    advice = advice_of(run, bench, rows)
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


def advice_of(run: Run, bench: Bench, rows: advising.Answers) -> Advice:
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
