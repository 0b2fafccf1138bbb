from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tunesmith.chat import Message, SamplingParams
from tunesmith.errors import AdapterError, EngineError
from tunesmith.serve import engines
from tunesmith.serve.engines import EngineSpec

HELLO = [Message("user", "hello")]


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"


def test_an_engine_answers_scores_takes_adapters_and_leaves_no_orphan(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    async def go() -> int:
        spec = EngineSpec(tmp_path, "base", adapters={"first": tmp_path})
        engine = await engines.start(spec, log=tmp_path / "e.log", command=command)
        async with engine:
            answer = await engine.chat().complete(HELLO, SamplingParams())
            assert answer.text == "hello"
            await engine.add_adapter("second", tmp_path)
            assert engine.adapters == {"first", "second"}
            answer = await engine.chat("second").complete(HELLO, SamplingParams())
            assert answer.text == "second: hello"
            with pytest.raises(AdapterError, match="is no adapter"):
                await engine.add_adapter("third", tmp_path / "no")
            logprobs = await engine.chat().logprobs(HELLO, Message("assistant", "ab"))
            assert logprobs == [0.0, -0.5, -1.0]
            assert engine.alive
        assert not engine.alive
        return engine._process.pid

    assert gone(asyncio.run(go()))


def test_an_engine_that_does_not_start_says_its_last_words(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    folder = tmp_path / "die"
    folder.mkdir()

    async def go() -> None:
        spec = EngineSpec(folder, "base")
        with pytest.raises(EngineError, match="weights of this model are gone") as caught:
            await engines.start(spec, log=tmp_path / "e.log", command=command)
        assert "did not start" in str(caught.value)

    asyncio.run(go())


def test_an_engine_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    sleeper = (sys.executable, "-c", "import time; time.sleep(60)")

    async def go() -> None:
        with pytest.raises(EngineError, match=r"ready within 0 s"):
            await engines.start(
                EngineSpec(tmp_path, "base"),
                log=tmp_path / "e.log",
                command=sleeper,
                timeout=0.3,
            )

    started = time.monotonic()
    asyncio.run(go())
    assert time.monotonic() - started < 5


def test_an_engine_dies_with_the_process_that_started_it(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    script = textwrap.dedent(f"""
        import asyncio, os
        from pathlib import Path
        from tunesmith.serve import engines
        async def go():
            spec = engines.EngineSpec(Path({str(tmp_path)!r}), "base")
            log = Path({str(tmp_path / "e.log")!r})
            engine = await engines.start(spec, log=log, command={command!r})
            print(engine._process.pid, flush=True)
            os.kill(os.getpid(), 9)
        asyncio.run(go())
    """)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    pid = int(done.stdout)
    deadline = time.monotonic() + 5
    while not gone(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert gone(pid)
