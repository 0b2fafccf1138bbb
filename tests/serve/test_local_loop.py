from __future__ import annotations

import asyncio
import threading
from types import ModuleType
from typing import Any

import pytest

from tunesmith.errors import EngineError
from tunesmith.models.generate import Request, ScoreRequest
from tunesmith.serve.local_loop import SamplerThread


def request(fake: ModuleType, said: str, name: str = "r") -> Request:
    from tunesmith.chat import Message

    ids = fake.byte_template(512).prompt([Message("user", said)])
    return Request(name, ids.prefix, ids.prompt, max_tokens=100)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_crash_of_the_sampler_reaches_everyone_who_waits(fake: ModuleType) -> None:
    crashed, told = threading.Event(), []
    thread = SamplerThread(fake.FakeSampler(fake.byte_template(512)), on_crash=crashed.set)
    thread.submit(request(fake, "loop", "first"), told.append)
    thread.submit(request(fake, "crash", "second"), told.append)
    thread.start()
    assert crashed.wait(5)
    thread.close()
    errors = [item for item in told if isinstance(item, EngineError)]
    assert len(errors) == 2
    thread.submit(request(fake, "x", "third"), told.append)
    assert "stopped" in str(told[-1])


def test_closing_tells_what_waits(fake: ModuleType) -> None:
    told: list[Any] = []
    thread = SamplerThread(fake.FakeSampler(fake.byte_template(512)))
    thread.submit(request(fake, "loop"), told.append)
    thread.start()
    thread.close()
    assert isinstance(told[-1], EngineError)


def test_answers_that_are_scored_at_once_are_scored_together(fake: ModuleType) -> None:
    sampler = fake.FakeSampler(fake.byte_template(512))
    thread = SamplerThread(sampler)

    async def go() -> list[list[float]]:
        asked = [ScoreRequest((), (1,), (2, 3), None) for _ in range(5)]
        waiting = [asyncio.create_task(thread.read(item)) for item in asked]
        await asyncio.sleep(0)
        thread.start()
        return [[token.logprob for token in answer] for answer in await asyncio.gather(*waiting)]

    assert asyncio.run(go()) == [[0.0, -0.5]] * 5
    assert sampler.score_calls == [5]
    thread.close()


def test_a_request_for_an_adapter_that_is_gone_is_refused_not_sampled(fake: ModuleType) -> None:
    sampler = fake.FakeSampler(fake.byte_template(512))
    thread = SamplerThread(sampler)
    told: list[Any] = []
    thread.submit(Request("r", (), (1,), 5, adapter="gone"), told.append)

    async def go() -> None:
        with pytest.raises(EngineError, match="removed or replaced"):
            await thread.read(ScoreRequest((), (1,), (2,), "gone"))

    thread.start()
    asyncio.run(go())
    thread.close()
    assert isinstance(told[0], EngineError)
    assert sampler.seen == []
