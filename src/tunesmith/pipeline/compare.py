"""All arms on the test rows, once; then the final advice, the verdict and the report's numbers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

from tunesmith.advise import Advice
from tunesmith.data.examples import Conversation
from tunesmith.evaluate.evaluation import Arm, Measured
from tunesmith.pipeline import advice as advising
from tunesmith.pipeline import conclude, curve, decide, external, measure, quality, retrieve
from tunesmith.pipeline import cost as costing
from tunesmith.pipeline.explore import advice_of
from tunesmith.pipeline.measure import Bench
from tunesmith.pipeline.under_way import Run, bench_of, open_engines
from tunesmith.sections import RETRIEVING

ADVICE_ROWS = 100
"""Validation rows behind the final advice: enough to tell a lead of a tenth or two."""


def compare(run: Run) -> None:
    """All arms on the test rows, once; the server held to what the trainer said."""
    found = asyncio.run(_compare(run))
    run.report = conclude.build(
        run.folder, run.recipe, run.model, run.prepared.counts(), run.tuned, found
    )
    run.report["data_enough"] = curve.data_enough(
        run.folder, run.recipe, found.arms, found.chosen.primary
    )
    costing.into(run.report, run.folder, run.recipe, found.arms)
    run.report["behind"] = quality.behind(
        run.folder,
        found.arms,
        run.rows("train"),
        primary=found.chosen.primary,
        seed=run.recipe.train.seed,
        screen=run.screen,
    )


async def _compare(run: Run) -> conclude.Findings:
    explored = run.folder.read_json("explore.json")
    held = run.rows("validation")
    seed = run.recipe.train.seed
    rows = measure.shuffled(run.rows("test") or held, seed)[: run.recipe.evaluate.limit]
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(open_engines(run, tuned=True))
        parity = await measure.check_parity(
            engine, run.tuned, run.folder.path / "parity.json", held or run.rows("train")
        )
        bench = bench_of(run, engine)
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
    return advice_of(run, bench, rows)
