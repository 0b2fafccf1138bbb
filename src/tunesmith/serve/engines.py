"""Engine processes: started, watched until they are ready, and stopped without orphans."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import secrets
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tunesmith import client
from tunesmith.client import EngineClient
from tunesmith.errors import EngineError
from tunesmith.models import gguf
from tunesmith.models.catalog import read_card
from tunesmith.models.lifetime import environment

EngineKind = Literal["local", "llama.cpp"]
COMMANDS: Mapping[EngineKind, Sequence[str]] = {
    "local": (sys.executable, "-m", "tunesmith.serve.local"),
    "llama.cpp": (sys.executable, "-m", "tunesmith.serve.llamacpp"),
}
"""What runs an engine of each kind; the path of its spec follows."""
ENCODER_COMMAND = (sys.executable, "-m", "tunesmith.serve.encoder")
"""What runs a sentence encoder."""
START_SECONDS = 300.0
STOP_SECONDS = 8.0


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """What an engine is to serve.

    `name` is what the base is called in requests; `adapters` are loaded at the start; `max_rows`
    is how many sequences are decoded together and `max_waiting` how many may wait for that; `kind` is what computes.
    """

    model: Path
    name: str
    adapters: Mapping[str, Path] = field(default_factory=dict[str, Path])
    dtype: str = "auto"
    max_rows: int = 32
    max_waiting: int = 256
    kind: EngineKind = "local"


Stamp = tuple[tuple[str, int, int], ...]
"""Weight files of a folder with their sizes and times of change."""


def stamp(folder: Path) -> Stamp:
    """Changes when the weights in a folder do."""
    files = [file.resolve() for file in sorted(folder.glob("*.safetensors"))]
    told = [(file, file.stat()) for file in files]
    return tuple((str(file), found.st_size, found.st_mtime_ns) for file, found in told)


class Engine:
    """A running engine process; as a context manager it is stopped at the end of the block."""

    def __init__(
        self, spec: EngineSpec, url: str, key: str, process: asyncio.subprocess.Process, log: Path
    ) -> None:
        self.spec, self.url, self.key, self.log = spec, url, key, log
        self._process = process
        self._client = client.connect_engine(url, key)
        self.weights = stamp(spec.model)
        self._adapters = {name: stamp(folder) for name, folder in spec.adapters.items()}
        self._lost = False

    async def __aenter__(self) -> Engine:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def alive(self) -> bool:
        """Whether the process is still there and answers."""
        return self._process.returncode is None and not self._lost

    def lost(self) -> None:
        """Note that it refused a connection: its end may be known a moment later."""
        self._lost = True

    @property
    def adapters(self) -> frozenset[str]:
        """Names of the adapters that it holds."""
        return frozenset(self._adapters)

    def has(self, name: str, folder: Path) -> bool:
        """Whether it holds the adapter that is in a folder now under that name."""
        return self._adapters.get(name) == stamp(folder)

    def chat(self, model: str | None = None) -> EngineClient:
        """The base (None), or the adapter of that name, as a ChatModel and TextScorer."""
        return EngineClient(self._client, model or self.spec.name)

    async def add_adapter(self, name: str, folder: Path) -> None:
        """Load a LoRA folder under a name; one that has the name is replaced.

        Raises:
            AdapterError: the adapter does not belong to these weights, or is incomplete.
            EngineError: the engine does not answer.
        """
        found = stamp(folder)
        await client.add_adapter(self._client, name, str(folder.resolve()))
        self._adapters[name] = found

    async def remove_adapter(self, name: str) -> None:
        """Let the engine forget an adapter, whose requests end with an error.

        Raises:
            EngineError: the engine does not answer.
        """
        self._adapters.pop(name, None)
        await client.remove_adapter(self._client, name)

    async def stop(self) -> None:
        """End the process and whatever it started."""
        await self._client.close()
        await _end(self._process)


def hindrances(base: Path, adapter: Path | None) -> dict[EngineKind, str]:
    """Every kind of engine with what keeps it from serving a model; empty where it serves it."""
    why = gguf.refusal(base)
    if adapter is not None and not why:
        four_bits = read_card(adapter).get("held_in") == "nf4"
        why = "it was trained beside 4 bits" if four_bits else gguf.adapter_refusal(adapter)
    if importlib.util.find_spec("xllamacpp") is None:
        why = why or "not installed: pip install 'tunesmith[llama-cpp]'"
    return {"local": "", "llama.cpp": why}


class Engines:
    """Several engines as one: each name is answered by the one that has it, the base by the first."""

    def __init__(self, engines: Sequence[Engine]) -> None:
        self._engines = engines

    def chat(self, model: str | None = None) -> EngineClient:
        """See Engine.chat."""
        for engine in self._engines:
            if model == engine.spec.name or model in engine.adapters:
                return engine.chat(model)
        return self._engines[0].chat(model)


async def start(
    spec: EngineSpec,
    *,
    log: Path,
    command: Sequence[str] | None = None,
    timeout: float = START_SECONDS,
) -> Engine:
    """Start an engine process and wait until it answers.

    Args:
        log: file that its standard error is appended to.
        command: what runs it instead of what COMMANDS says.
        timeout: seconds that loading the model may take.

    Raises:
        EngineError: it ended or did not get ready in time; the message has its last lines.
    """
    key = secrets.token_urlsafe(32)
    log.parent.mkdir(parents=True, exist_ok=True)
    before = log.stat().st_size if log.exists() else 0
    with (
        tempfile.TemporaryDirectory(prefix="tunesmith-engine-") as folder,
        log.open("ab") as errors,
    ):
        spec_file = Path(folder) / "spec.json"
        spec_file.write_text(json.dumps(_written(spec, key)), encoding="utf-8")
        process = await asyncio.create_subprocess_exec(
            *(command or COMMANDS[spec.kind]),
            str(spec_file),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
            env=environment(),
        )
        try:
            url = await asyncio.wait_for(_ready(process), timeout)
        except BaseException as error:
            await _end(process)
            if not isinstance(error, TimeoutError):
                raise
            url = None
    if url is None:
        raise EngineError(
            f"the engine of {spec.name} did not start{_last_lines(log, before)}",
            expected=f"it to be ready within {timeout:.0f} s",
            remedy=f"Its log is {log}.",
        )
    return Engine(spec, url, key, process, log)


def _written(spec: EngineSpec, key: str) -> dict[str, Any]:
    return {
        "model": str(spec.model.resolve()),
        "name": spec.name,
        "adapters": {name: str(folder.resolve()) for name, folder in spec.adapters.items()},
        "dtype": spec.dtype,
        "max_rows": spec.max_rows,
        "max_waiting": spec.max_waiting,
        "key": key,
        "parent": os.getpid(),
    }


async def _ready(process: asyncio.subprocess.Process) -> str | None:
    """The URL of the ready line; None when the process ended without one."""
    assert process.stdout is not None
    line = await process.stdout.readline()
    if not line:
        await process.wait()
        return None
    return json.loads(line)["url"]


async def _end(process: asyncio.subprocess.Process) -> None:
    """SIGTERM, then SIGKILL to the whole group; the process is waited for."""
    if process.returncode is not None:
        await process.communicate()
        return
    _signal_group(process, signal.SIGTERM)
    try:
        await asyncio.wait_for(process.communicate(), STOP_SECONDS)
    except TimeoutError:
        _signal_group(process, signal.SIGKILL)
        await process.communicate()
    _signal_group(process, signal.SIGKILL)


def _signal_group(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return


def _last_lines(log: Path, start: int) -> str:
    """The end of what this process wrote, ready to be appended to a sentence."""
    with log.open("rb") as file:
        file.seek(start)
        text = file.read()[-4000:].decode("utf-8", errors="replace").strip()
    return ":\n" + "\n".join(text.splitlines()[-8:]) if text else ""
