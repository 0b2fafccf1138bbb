"""Vectors of texts from the catalogue's sentence encoder, in a process of its own."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from tunesmith import client
from tunesmith.errors import EngineError, ModelError
from tunesmith.models import fetch
from tunesmith.models.catalog import ENCODER, ModelSpec
from tunesmith.serve import engines

BATCH = 128
Embed = Callable[[Sequence[str]], Awaitable[NDArray[np.float32]]]


def encoder(say: Callable[[str], None]) -> ModelSpec | None:
    """The encoder on this disk, fetched if it can be; None, said, where it cannot."""
    try:
        return fetch.resolve(ENCODER, say=say)
    except ModelError as error:
        say(f"texts are compared by their words alone, as there is no encoder: {error.found}")
        return None


@asynccontextmanager
async def embedding(
    spec: ModelSpec | None, *, log: Path, told: Callable[[int, int], None]
) -> AsyncGenerator[Embed | None]:
    """What makes vectors (N, width) of length 1 from N texts, of each text's first tokens.

    Args:
        spec: what `encoder` found; None yields None.
        told: told how many of how many texts are done.
    """
    if spec is None:
        yield None
        return
    tokenizer = _tokenizer(spec.folder)
    started = await engines.start(
        engines.EngineSpec(spec.folder, spec.name), log=log, command=engines.ENCODER_COMMAND
    )
    async with started as engine:
        connection = client.connect_engine(engine.url, engine.key)

        async def embed(texts: Sequence[str]) -> NDArray[np.float32]:
            ids = [row.ids for row in tokenizer.encode_batch_fast(list(texts))]
            rows: list[list[float]] = []
            for start in range(0, len(ids), BATCH):
                rows += await client.embed(connection, spec.name, ids[start : start + BATCH])
                if len(ids) > BATCH:
                    told(len(rows), len(ids))
            return np.asarray(rows, dtype=np.float32)

        try:
            yield embed
        finally:
            await connection.close()


def _tokenizer(folder: Path) -> Tokenizer:
    """The encoder's own, which cuts what is too long for it: vectors of beginnings are vectors."""
    settings = folder / "sentence_bert_config.json"
    if not settings.is_file():
        raise EngineError(f"{folder} has no {settings.name}", expected="a sentence encoder")
    most = json.loads(settings.read_text(encoding="utf-8"))["max_seq_length"]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(int(most))
    return tokenizer
