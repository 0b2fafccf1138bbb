"""Rows that are trained beside the user's own: replayed general answers, and canaries."""

from __future__ import annotations

import asyncio
from itertools import cycle, islice

from tunesmith.chat import Message, SamplingParams
from tunesmith.data.examples import Conversation, Source
from tunesmith.data.split import read_jsonl, write_jsonl
from tunesmith.evaluate import memorising, probes
from tunesmith.evaluate.evaluation import each
from tunesmith.models.catalog import ModelSpec
from tunesmith.pipeline.folder import RunFolder
from tunesmith.recipe import Recipe
from tunesmith.serve import engines

FILE = "extra.jsonl"
ANSWER_TOKENS = 256
"""Longest replayed answer: what is cut there is not trained, as it would teach to stop anywhere."""


def write(recipe: Recipe, model: ModelSpec, folder: RunFolder) -> None:
    """data/extra.jsonl, where the recipe asks for such rows and it is not there yet.

    Raises:
        EngineError: the base did not answer.
    """
    train, target = recipe.train, folder.data / FILE
    if target.is_file() or not (train.replay or train.canaries):
        return
    rows = [
        _row(canary.prompt, canary.secret, Source("canaries", number))
        for number, canary in enumerate(memorising.canaries(train.canaries, train.seed), 1)
    ]
    if train.replay:
        own = sum(1 for _ in read_jsonl(folder.data / "train.jsonl"))
        spec = engines.EngineSpec(model.folder, model.name, dtype=recipe.model.dtype, max_rows=64)
        rows += asyncio.run(_replayed(spec, max(1, round(train.replay * own)), train.seed, folder))
    scratch = target.with_name(f".{FILE}.partial")
    write_jsonl(rows, scratch)
    scratch.replace(target)


def _row(prompt: str, answer: str, source: Source) -> Conversation:
    return Conversation((Message("user", prompt), Message("assistant", answer)), source)


async def _replayed(
    spec: engines.EngineSpec, count: int, seed: int, folder: RunFolder
) -> list[Conversation]:
    """The base's own answers to general prompts, sampled at temperature 1.

    Learning them is, in expectation, descending KL(base || tuned) on these prompts: the gradient of
    -log p_tuned(y) over y drawn from the base is that of the divergence (self-distillation, as in
    Li and Hoiem 2016, arXiv:1606.09282, on sampled answers).
    """
    async with await engines.start(spec, log=folder.path / "engine.log") as engine:
        model = engine.chat()

        async def answer(item: tuple[int, str]) -> Conversation | None:
            number, prompt = item
            params = SamplingParams(1.0, max_tokens=ANSWER_TOKENS, seed=seed + number)
            said = await model.complete([Message("user", prompt)], params)
            if said.finish_reason != "stop" or not said.text.strip():
                return None
            return _row(prompt, said.text.strip(), Source("replay", number))

        # Twice as many as are wanted, since some ramble.
        asked = list(enumerate(islice(cycle(probes.replayed()), 2 * count), 1))
        found = await each(asked, answer, concurrency=spec.max_rows)
    return [row for row in found if row is not None][:count]
