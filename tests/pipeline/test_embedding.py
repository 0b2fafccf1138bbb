from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tunesmith.models.catalog import ModelSpec
from tunesmith.models.encoder import Encoder
from tunesmith.pipeline.embedding import BATCH, embedding, encoder


def test_vectors_are_the_encoders_own_and_long_texts_are_cut(
    tiny_encoder: Path, tmp_path: Path
) -> None:
    seen: list[tuple[int, int]] = []
    texts = [*(f"parcel {chr(97 + n % 26)}" for n in range(BATCH)), "a b c d " * 30]

    async def go() -> Any:
        spec = ModelSpec("tiny", tiny_encoder, "r", "h")
        log = tmp_path / "log"
        async with embedding(spec, log=log, told=lambda *done: seen.append(done)) as embed:
            assert embed is not None
            return await embed(texts)

    found = asyncio.run(go())
    expected = Encoder.load(tiny_encoder, dtype="float32").encode(texts, too_long="cut")
    assert found.shape == expected.shape
    assert np.min(np.sum(found * expected, axis=1)) > 0.999
    assert seen == [(BATCH, BATCH + 1), (BATCH + 1, BATCH + 1)]


def test_without_an_encoder_it_is_said_and_there_are_no_vectors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, screen: Callable[..., Any]
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    said: list[str] = []
    spec = encoder(said.append)
    assert spec is None
    assert said[-1].startswith("texts are compared by their words alone, as there is no encoder")

    async def go() -> Any:
        async with embedding(spec, log=tmp_path / "log", told=lambda *_: None) as embed:
            return embed

    assert asyncio.run(go()) is None
