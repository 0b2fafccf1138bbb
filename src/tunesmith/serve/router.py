"""From a deployment to the engine process that answers for it."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tunesmith.errors import EngineError
from tunesmith.models.catalog import read_card
from tunesmith.serve import engines
from tunesmith.serve.engines import Engine, EngineKind, EngineSpec
from tunesmith.settings import MAX_WAITING

PAUSE_SECONDS = 10.0
"""How long an engine that did not start is not tried again: the requests that waited for it fail
at once instead of each loading the model anew."""
MAX_ADAPTERS = 16
"""Most adapters that an engine holds beside its base."""


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


def _held(deployment: Deployment) -> _Held:
    return deployment.base_folder.resolve(), deployment.dtype


class Router:
    """Starts one engine a base, at its first use, and loads adapters into it on demand.

    An engine whose base has other weights in its folder by now is started anew, and an adapter is
    loaded again when its folder is another one or was written again.

    Args:
        logs: folder for the engines' logs.
        kind: what computes.
        max_rows: most sequences that an engine decodes together.
        max_waiting: most that wait for it; more are refused.
        max_adapters: most adapters that an engine holds. Beyond it the one that was used longest ago
            leaves, of those that answer nothing; where all of them answer, none does.
        command: what runs an engine instead of what its kind says.
    """

    def __init__(
        self,
        *,
        logs: Path,
        kind: EngineKind = "local",
        max_rows: int = 32,
        max_waiting: int = MAX_WAITING,
        max_adapters: int = MAX_ADAPTERS,
        command: Sequence[str] | None = None,
    ) -> None:
        self._logs, self._command = logs, command
        self._kind: EngineKind = kind
        self._max_rows, self._max_adapters = max_rows, max_adapters
        self._max_waiting = max_waiting
        self._used: dict[tuple[_Held, str], float] = {}
        self._answering: Counter[tuple[_Held, str]] = Counter()
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
        held = _held(deployment)
        async with self._locks[held]:
            engine = self._engines.get(held)
            if engine is None or not engine.alive or engine.weights != engines.stamp(held[0]):
                engine = await self._start(held, deployment)
            if deployment.adapter is None:
                return engine
            self._used[held, deployment.name] = time.monotonic()
            if engine.has(deployment.name, deployment.adapter):
                return engine
            try:
                await self._make_room(held, engine, deployment.name)
                await engine.add_adapter(deployment.name, deployment.adapter)
            except EngineError:
                engine = await self._start(held, deployment)
                await engine.add_adapter(deployment.name, deployment.adapter)
            return engine

    @contextmanager
    def answering(self, deployment: Deployment) -> Generator[None]:
        """Keep the deployment's adapter in its engine for the length of the block.

        Entered right behind `engine`, before anything else is awaited.
        """
        key = _held(deployment), deployment.name
        self._answering[key] += 1
        try:
            yield
        finally:
            self._answering[key] -= 1
            self._answering += Counter()
            self._used[key] = time.monotonic()

    async def _make_room(self, held: _Held, engine: Engine, name: str) -> None:
        """Let adapters leave until one more fits, if `name` is one more."""
        excess = len(engine.adapters | {name}) - self._max_adapters
        free = [other for other in engine.adapters - {name} if not self._answering[held, other]]
        free.sort(key=lambda other: self._used.get((held, other), 0.0))
        for other in free[: max(0, excess)]:
            await engine.remove_adapter(other)
            self._used.pop((held, other), None)

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
        spec = EngineSpec(
            folder,
            deployment.base,
            dtype=dtype,
            max_rows=self._max_rows,
            max_waiting=self._max_waiting,
            kind=self._kind,
        )
        log = self._logs / f"engine-{folder.name}.log"
        try:
            engine = await engines.start(spec, log=log, command=self._command)
        except EngineError as error:
            self._failed[held] = (time.monotonic(), str(error))
            raise
        self._engines[held] = engine
        return engine
