"""What tuning may have cost: probes of base and tuned, the trade-off curve, and what was memorised."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tunesmith.chat import Message, answer_text
from tunesmith.checks import privacy
from tunesmith.client import EngineClient
from tunesmith.data.examples import Conversation
from tunesmith.data.split import read_jsonl
from tunesmith.evaluate import forgetting, memorising
from tunesmith.evaluate.evaluation import Arm, Measured, each, row_ids, written
from tunesmith.evaluate.forgetting import Answer, Rollout
from tunesmith.evaluate.memorising import Trained, Written
from tunesmith.evaluate.probes import Probe, limited, read, shipped
from tunesmith.evaluate.statistics import Interval
from tunesmith.pipeline.folder import RunFolder, unmeasured
from tunesmith.pipeline.measure import CONCURRENCY, Bench
from tunesmith.pipeline.prepare import demonstrations
from tunesmith.pipeline.scale import hindrance, write_scaled
from tunesmith.recipe import Recipe

FILE, LINES = "probes.json", "probes.jsonl"
SCALES = (0.25, 0.5, 0.75)
PART = 12
"""Probes of each suite that a scale is measured on."""
ASKED = 24
"""Training prompts that are asked again."""


@contextmanager
def scaled(folder: RunFolder, recipe: Recipe) -> Generator[dict[str, Path]]:
    """The adapter at each of SCALES under a name of its own, as long as the block lasts."""
    adapter = folder.adapter
    with tempfile.TemporaryDirectory(prefix="tunesmith-scales-") as scratch:
        found: dict[str, Path] = {}
        if recipe.forgetting.tradeoff and adapter.is_dir() and not hindrance(adapter):
            for scale in SCALES:
                found[_name(scale)] = Path(scratch) / _name(scale)
                write_scaled(adapter, found[_name(scale)], scale)
        yield found


def _name(scale: float) -> str:
    return f"scale-{scale:g}"


def gather(recipe: Recipe) -> list[Probe]:
    """The probes that ship, and the user's own.

    Raises:
        UsageError: a file of probes cannot be read.
    """
    own = recipe.forgetting
    return shipped() + [p for name in own.probes for p in read(Path(name), most=own.limit)]


async def measure(
    folder: RunFolder, recipe: Recipe, bench: Bench, tuned: str, held: Sequence[Conversation]
) -> dict[str, Any]:
    """Ask base and tuned, and write probes.json and every answer into probes.jsonl.

    Args:
        held: validation rows, for the trade-off.
    """
    asked, seed = gather(recipe), bench.seed
    base, own = bench.engine.chat(), bench.engine.chat(tuned)

    async def answers(name: str, model: EngineClient) -> dict[str, Answer]:
        return await forgetting.ask(
            model,
            asked,
            progress=lambda done, total: bench.told(f"general ability, {name}", done, total),
        )

    before, after = await answers("base", base), await answers("tuned", own)
    moved = await forgetting.rollouts(
        own,
        base,
        asked,
        seed=seed,
        progress=lambda done, total: bench.told("distance to the base", done, total),
    )
    again = await _again(bench, base, own)
    found = {
        "forgetting": {
            **forgetting.summary(before, after, moved, seed),
            "tradeoff": await _tradeoff(
                folder, recipe, bench, tuned, held, asked, before, after, moved
            ),
        },
        "canaries": await _canaries(own, recipe),
    }
    lines = [_line(probe, before, after) for probe in asked if probe.id in before]
    lines += [{"kind": "open", "id": r.id, "prompt": r.prompt, "tuned": r.output} for r in moved]
    folder.write_lines(LINES, [*lines, *again])
    folder.write_json(FILE, found)
    return found


def _line(probe: Probe, base: Mapping[str, Answer], tuned: Mapping[str, Answer]) -> dict[str, Any]:
    both = {"base": base[probe.id], "tuned": tuned[probe.id]}
    return {
        "kind": "closed",
        "id": probe.id,
        "prompt": probe.prompt,
        **{name: answer.output for name, answer in both.items()},
        "scores": {name: answer.scores for name, answer in both.items()},
    }


async def _tradeoff(
    folder: RunFolder,
    recipe: Recipe,
    bench: Bench,
    tuned: str,
    held: Sequence[Conversation],
    asked: Sequence[Probe],
    before: Mapping[str, Answer],
    after: Mapping[str, Answer],
    moved: Sequence[Rollout],
) -> Any:
    if not recipe.forgetting.tradeoff:
        return unmeasured("forgetting.tradeoff=off")
    if not folder.adapter.is_dir():
        return unmeasured("all weights were trained: there is no adapter to scale")
    if why := hindrance(folder.adapter):
        return unmeasured(why)
    part = list(limited([probe for probe in asked if not probe.text], PART))
    ids = {probe.id for probe in part}
    base = bench.engine.chat()

    async def task(name: str | None) -> Interval | None:
        if not held:
            return None
        arm = Arm(name or "base", "tuned", bench.engine.chat(name))
        return (await bench.run(arm, held, CONCURRENCY)).scores.get(bench.chosen.primary)

    def some(answers: Mapping[str, Answer]) -> dict[str, Answer]:
        return {name: answer for name, answer in answers.items() if name in ids}

    points = [forgetting.point(0.0, some(before), (), await task(None), bench.seed)]
    for scale in SCALES:
        model = bench.engine.chat(_name(scale))
        answers = await forgetting.ask(model, part)
        away = await forgetting.rollouts(model, base, part, seed=bench.seed)
        done = await task(_name(scale))
        points.append(forgetting.point(scale, answers, away, done, bench.seed))
    away = [rollout for rollout in moved if rollout.id in ids]
    points.append(forgetting.point(1.0, some(after), away, await task(tuned), bench.seed))
    return {
        "metric": bench.chosen.primary,
        "rows": len(held),
        "probes": len(part),
        "points": [asdict(point) for point in points],
    }


async def _again(bench: Bench, base: EngineClient, tuned: EngineClient) -> list[dict[str, Any]]:
    """Training prompts asked again, of base and tuned, where the answer is long enough to tell."""
    names = row_ids(bench.train)
    rows = [
        (name, row)
        for name, row in zip(names, bench.train, strict=True)
        if memorising.long_enough(answer_text(row.answer))
    ]
    rows = random.Random(bench.seed).sample(rows, min(ASKED, len(rows)))

    async def one(item: tuple[str, Conversation]) -> dict[str, Any]:
        name, row = item
        said = [await m.complete(row.prompt, bench.params, row.tools) for m in (base, tuned)]
        outputs = dict(zip(("base", "tuned"), map(written, said), strict=True))
        return {"kind": "trained", "id": name, "prompt": _asked(row), **outputs}

    return await each(
        rows,
        one,
        concurrency=CONCURRENCY,
        progress=lambda done, total: bench.told("training prompts again", done, total),
    )


async def _canaries(tuned: EngineClient, recipe: Recipe) -> dict[str, Any]:
    planted = memorising.canaries(recipe.train.canaries, recipe.train.seed)
    if not planted:
        return unmeasured("train.canaries=0")

    async def likely(item: tuple[str, str]) -> float:
        prompt, secret = item
        asked = [Message("user", prompt)]
        return sum(await tuned.logprobs(asked, Message("assistant", secret)))

    exposures: list[float] = []
    for canary in planted:
        pairs = [(canary.prompt, text) for text in (canary.secret, *canary.alternatives)]
        own, *others = await each(pairs, likely, concurrency=CONCURRENCY)
        exposures.append(memorising.exposure(own, others))
    return memorising.exposed(exposures)


def parts(folder: RunFolder, arms: Mapping[str, Measured]) -> dict[str, Any]:
    """`forgetting` and `memorising` of report.json, from what `measure` wrote and the test answers."""
    if not (folder.path / FILE).is_file():
        reason = "it was left out: forgetting.probe=off"
        return {"forgetting": unmeasured(reason), "memorising": unmeasured(reason)}
    found, lines = folder.read_json(FILE), folder.read_lines(LINES)
    train = demonstrations(read_jsonl(folder.data / "train.jsonl"))
    answers = [answer_text(row.answer) for row in train]
    trained = Trained(dict(zip(row_ids(train), answers, strict=True)))
    tested = {name: _tested(folder, arms[name]) for name in ("tuned", "base") if name in arms}
    free = [_written(line, "tuned") for line in lines if line["kind"] == "open"]
    again = {
        name: [_written(line, name) for line in lines if line["kind"] == "trained"]
        for name in ("tuned", "base")
    }
    short = unmeasured(f"no training answer has {memorising.LEAST_WORDS} words")
    said = [*tested.get("tuned", ()), *free, *again["tuned"]]
    texts = (message.content or "" for row in train for message in row.messages)
    return {
        "forgetting": found["forgetting"],
        "memorising": {
            "least_words": memorising.LEAST_WORDS,
            "test_answers": {n: memorising.verbatim(trained, rows) for n, rows in tested.items()},
            "free_answers": {"tuned": memorising.verbatim(trained, free)},
            "training_prompts": {n: memorising.verbatim(trained, rows) for n, rows in again.items()}
            if again["tuned"]
            else short,
            "personal": memorising.personal(texts, said, _personal),
            "canaries": found["canaries"],
            "gaps": memorising.gaps(folder.events()),
        },
    }


def _tested(folder: RunFolder, arm: Measured) -> list[Written]:
    """The arm's answers to the test rows; a row's whole prompt and its reference may be repeated."""
    rows = demonstrations(read_jsonl(folder.data / "test.jsonl"))
    rows = rows or demonstrations(read_jsonl(folder.data / "validation.jsonl"))
    asked = dict(zip(row_ids(rows), map(_asked, rows), strict=True))
    return [
        Written(
            sample.id, sample.output, f"{asked.get(sample.id, sample.prompt)}\n{sample.reference}"
        )
        for sample in arm.samples
    ]


def _written(line: Mapping[str, Any], name: str) -> Written:
    return Written(line["id"], line[name], line["prompt"])


def _asked(row: Conversation) -> str:
    return "\n".join(answer_text(message) for message in row.prompt)


def _personal(text: str) -> list[str]:
    return [value for _, value in privacy.matches(text)]
