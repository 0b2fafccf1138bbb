from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from tunesmith.chat import Message, SamplingParams
from tunesmith.errors import EngineError
from tunesmith.serve import engines
from tunesmith.serve.router import Deployment, Router

HELLO = [Message("user", "hello")]


def test_one_engine_serves_a_base_with_its_adapters_and_is_started_anew_when_it_died(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    base = Deployment("base", "base", tmp_path)
    tuned = Deployment("ft:base:me:run:1", "base", tmp_path, adapter=tmp_path)

    async def go() -> None:
        async with Router(logs=tmp_path, command=command) as router:
            first, second = await asyncio.gather(router.engine(base), router.engine(tuned))
            assert first is second
            assert router.running == ("base",)
            answer = await second.chat(tuned.name).complete(HELLO, SamplingParams())
            assert answer.text == "ft:base:me:run:1: hello"
            os.kill(first._process.pid, signal.SIGKILL)
            while first.alive:
                await asyncio.sleep(0.01)
            third = await router.engine(tuned)
            answer = await third.chat(tuned.name).complete(HELLO, SamplingParams())
            assert answer.text == "ft:base:me:run:1: hello"
        assert router.running == ()

    asyncio.run(go())


def test_a_registered_model_is_an_adapter_or_weights_of_its_own(tmp_path: Path) -> None:
    own = Deployment.registered("ft:base:me:run:1", "base", str(tmp_path), None)
    assert own == Deployment("ft:base:me:run:1", "ft:base:me:run:1", tmp_path)
    beside = Deployment.registered("ft:base:me:run:2", "base", "folder", str(tmp_path))
    assert beside == Deployment("ft:base:me:run:2", "base", Path("folder"), tmp_path)
    # One that was trained beside 4-bit weights answers beside them.
    (tmp_path / "tunesmith.json").write_text('{"held_in": "nf4"}')
    beside = Deployment.registered("ft:base:me:run:2", "base", "folder", str(tmp_path))
    assert beside.dtype == "nf4"


def test_an_engine_that_did_not_start_is_not_tried_again_at_once(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    folder = tmp_path / "die"
    folder.mkdir()
    deployment = Deployment("base", "base", folder)

    async def go() -> None:
        async with Router(logs=tmp_path / "logs", command=command) as router:
            assert router.ready
            asked = [router.engine(deployment) for _ in range(3)]
            answers = await asyncio.gather(*asked, return_exceptions=True)
            assert all(isinstance(answer, EngineError) for answer in answers)
            log = tmp_path / "logs" / "engine-die.log"
            assert log.read_text().count("weights of this model are gone") == 1
            with pytest.raises(EngineError, match="are gone"):
                await router.engine(deployment)
            assert not router.ready

    asyncio.run(go())


def test_adapters_beyond_the_cap_leave_by_least_use_unless_they_answer(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    names = [f"ft:base:me:run:{number}" for number in range(4)]
    places = [Deployment(name, "base", tmp_path, adapter=tmp_path) for name in names]

    async def go() -> None:
        async with Router(logs=tmp_path, command=command, max_adapters=2) as router:
            for place in (places[0], places[1], places[0]):
                engine = await router.engine(place)
            with router.answering(places[1]):
                await router.engine(places[2])
                # The first was used later than the second, which answers.
                assert engine.adapters == {names[1], names[2]}
                with router.answering(places[2]):
                    await router.engine(places[3])
                    assert engine.adapters == {names[1], names[2], names[3]}
            await router.engine(places[0])
            assert engine.adapters == {names[0], names[1]}
            with pytest.raises(EngineError, match="does not exist"):
                await engine.chat(names[3]).complete(HELLO, SamplingParams())
            answer = await engine.chat(names[0]).complete(HELLO, SamplingParams())
            assert answer.text == f"{names[0]}: hello"

    asyncio.run(go())


def test_a_name_with_other_weights_is_not_answered_by_the_old_ones(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    base, first, second = (tmp_path / name for name in ("base", "first", "second"))
    for folder in (base, first, second):
        folder.mkdir()
        (folder / "adapter_model.safetensors").write_bytes(b"one")
    name = "ft:base:me:run:1"

    async def go() -> None:
        async with Router(logs=tmp_path, command=command) as router:
            engine = await router.engine(Deployment(name, "base", base, adapter=first))
            assert engine.has(name, first)
            assert not engine.has(name, second)
            await router.engine(Deployment(name, "base", base, adapter=second))
            assert engine.has(name, second)
            assert not engine.has(name, first)
            (second / "adapter_model.safetensors").write_bytes(b"other")
            assert not engine.has(name, second)
            await router.engine(Deployment(name, "base", base, adapter=second))
            assert engine.has(name, second)
            # A base that was written again is loaded again.
            assert await router.engine(Deployment("base", "base", base)) is engine
            (base / "adapter_model.safetensors").write_bytes(b"another")
            assert await router.engine(Deployment("base", "base", base)) is not engine
            assert not engine.alive

    asyncio.run(go())


def test_each_kind_of_engine_is_started_by_its_own_command(tmp_path: Path) -> None:
    assert {kind: list(call)[-1] for kind, call in engines.COMMANDS.items()} == {
        "local": "tunesmith.serve.local",
        "llama.cpp": "tunesmith.serve.llamacpp",
    }

    async def go() -> None:
        async with Router(logs=tmp_path, kind="llama.cpp") as router:
            with pytest.raises(EngineError, match=r"llama\.cpp does not serve weights in nf4"):
                await router.engine(Deployment("base", "base", tmp_path, dtype="nf4"))

    asyncio.run(go())
