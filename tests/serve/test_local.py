from __future__ import annotations

import asyncio
import math
from pathlib import Path

import pytest

from tunesmith.chat import Message, SamplingParams
from tunesmith.errors import AdapterError, EngineError
from tunesmith.serve import engines
from tunesmith.serve.engines import EngineSpec
from tunesmith.testing import tiny_model

HELLO = [Message("user", "hello")]


def test_the_real_engine_answers_scores_and_refuses_what_is_no_adapter(tmp_path: Path) -> None:
    async def go() -> None:
        spec = EngineSpec(tiny_model(tmp_path / "tiny"), "tiny", dtype="float32")
        async with await engines.start(spec, log=tmp_path / "engine.log") as engine:
            chat, params = engine.chat(), SamplingParams(max_tokens=8)
            alone = await chat.complete(HELLO, params)
            others = [[Message("user", f"row {row}")] for row in range(5)]
            together, *_ = await asyncio.gather(
                *(chat.complete(messages, params) for messages in (HELLO, *others))
            )
            assert together.text == alone.text
            assert alone.usage.completion_tokens <= 8
            scored = await chat.score(HELLO, Message("assistant", "né"))
            # A random model gives each of its ids about the same probability.
            assert [round(value / -math.log(260)) for value in scored.logprobs] == [1] * 4
            with pytest.raises(AdapterError):
                await engine.add_adapter("broken", tmp_path)

    asyncio.run(go())


def test_a_folder_that_is_no_model_is_named_without_a_stack_trace(tmp_path: Path) -> None:
    async def go() -> None:
        spec = EngineSpec(tmp_path, "nothing")
        with pytest.raises(EngineError) as caught:
            await engines.start(spec, log=tmp_path / "engine.log")
        assert str(tmp_path) in str(caught.value)
        assert "Traceback" not in str(caught.value)

    asyncio.run(go())
