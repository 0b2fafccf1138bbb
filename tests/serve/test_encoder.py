from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import httpx
import numpy as np
import pytest

from tunesmith.errors import EngineError
from tunesmith.models.encoder import Encoder
from tunesmith.serve import engines
from tunesmith.serve.encoder_wire import read_vectors
from tunesmith.serve.engines import ENCODER_COMMAND, EngineSpec


def test_the_process_answers_with_the_librarys_vectors_to_its_key_alone(
    tiny_encoder: Path, tmp_path: Path
) -> None:
    async def go() -> None:
        spec = EngineSpec(tiny_encoder, "tiny", dtype="float32")
        started = await engines.start(spec, log=tmp_path / "log", command=ENCODER_COMMAND)
        async with started as engine, httpx.AsyncClient(timeout=60, trust_env=False) as http:
            asked = {"model": "tiny", "encoding_format": "base64"}

            async def post(text: str, key: str = engine.key) -> httpx.Response:
                return await http.post(
                    f"{engine.url}/v1/embeddings",
                    json={**asked, "input": text},
                    headers={"authorization": f"Bearer {key}"},
                )

            texts = ["a", "My parcel is late", "b c d", "z " * 30]
            answers = await asyncio.gather(*map(post, texts))
            found = np.array([read_vectors(answer.json())[0] for answer in answers])
            expected = Encoder.load(tiny_encoder, dtype="float32").encode(texts)
            assert np.abs(found - expected).max() < 1e-6
            refused = await post("a", "wrong")
            assert refused.status_code == 401
            assert refused.json()["error"]["code"] == "invalid_api_key"
            os.kill(engine._process.pid, signal.SIGTERM)
            assert await engine._process.wait() in (0, -signal.SIGTERM)

    asyncio.run(go())


def test_a_folder_that_is_no_encoder_is_named_without_a_stack_trace(tmp_path: Path) -> None:
    async def go() -> None:
        with pytest.raises(EngineError, match=r"modules\.json is not there") as caught:
            await engines.start(
                EngineSpec(tmp_path, "none"), log=tmp_path / "log", command=ENCODER_COMMAND
            )
        assert "Traceback" not in str(caught.value)

    asyncio.run(go())
