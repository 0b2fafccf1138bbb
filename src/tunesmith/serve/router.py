"""From a deployment to the engine process that answers for it."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tunesmith.errors import EngineError
from tunesmith.models.catalog import read_card
from tunesmith.serve import engines
from tunesmith.serve.engines import Engine, EngineSpec

PAUSE_SECONDS = 10.0
"""How long an engine that did not start is not tried again: the requests that waited for it fail
at once instead of each loading the model anew."""


_Held = tuple[Path, str]
"""A base's folder, and what its weights are held in."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """A name with weights behind it: a base, or an adapter over one."""

    name: str
    base: str
    base_folder: Path
    adapter: Path | None = None
    dtype: str = "auto"

    @classmethod
    def registered(
        cls, name: str, base: str, base_folder: str, adapter: str | None, *, dtype: str = "auto"
    ) -> Deployment:
        """A model that a run has registered: an adapter, or weights that are all its own."""
        if adapter is None:
            return cls(name, name, Path(base_folder), dtype=dtype)
        if read_card(Path(adapter)).get("held_in") == "nf4":
            # It has learned what rounding to 4 bits does to the base.
            dtype = "nf4"
        return cls(name, base, Path(base_folder), Path(adapter), dtype)


class Router:
    """Starts one engine a base, at its first use, and loads adapters into it on demand.

    Args:
        logs: folder for the engines' logs.
        max_rows: most sequences that an engine decodes together.
    """

    def __init__(
        self, *, logs: Path, max_rows: int = 32, command: Sequence[str] = engines.COMMAND
    ) -> None:
        self._logs, self._max_rows, self._command = logs, max_rows, tuple(command)
        self._engines: dict[_Held, Engine] = {}
        self._failed: dict[_Held, tuple[float, str]] = {}
        self._locks: defaultdict[_Held, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def __aenter__(self) -> Router:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def engine(self, deployment: Deployment) -> Engine:
        """The engine that has the deployment's weights; ask it for `deployment.name`.

        Raises:
            EngineError: the engine does not start.
            AdapterError: the adapter does not belong to the base, or is incomplete.
        """
        held = deployment.base_folder.resolve(), deployment.dtype
        async with self._locks[held]:
            engine = self._engines.get(held)
            if engine is None or not engine.alive:
                engine = await self._start(held, deployment)
            if deployment.adapter is None or deployment.name in engine.adapters:
                return engine
            try:
                await engine.add_adapter(deployment.name, deployment.adapter)
            except EngineError:
                engine = await self._start(held, deployment)
                await engine.add_adapter(deployment.name, deployment.adapter)
            return engine

    @property
    def running(self) -> tuple[str, ...]:
        """Names of the bases that an engine is up for."""
        return tuple(engine.spec.name for engine in self._engines.values() if engine.alive)

    @property
    def ready(self) -> bool:
        """Whether an engine is up, or none has just failed to start."""
        now = time.monotonic()
        recent = (now - at < PAUSE_SECONDS for at, _ in self._failed.values())
        return bool(self.running) or not any(recent)

    async def close(self) -> None:
        """Stop every engine."""
        running, self._engines = list(self._engines.values()), {}
        await asyncio.gather(*(engine.stop() for engine in running))

    async def _start(self, held: _Held, deployment: Deployment) -> Engine:
        dead = self._engines.pop(held, None)
        if dead is not None:
            await dead.stop()
        failed = self._failed.get(held)
        if failed is not None and time.monotonic() - failed[0] < PAUSE_SECONDS:
            raise EngineError(failed[1])
        folder, dtype = held
        spec = EngineSpec(folder, deployment.base, dtype=dtype, max_rows=self._max_rows)
        log = self._logs / f"engine-{folder.name}.log"
        try:
            engine = await engines.start(spec, log=log, command=self._command)
        except EngineError as error:
            self._failed[held] = (time.monotonic(), str(error))
            raise
        self._engines[held] = engine
        return engine
