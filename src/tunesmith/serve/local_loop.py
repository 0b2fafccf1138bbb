"""The engine thread: one sampler, fed by many requests.

The sampler is not thread-safe and is only ever touched from this thread. Everything else hands it
commands through a queue; tokens go back by calling `deliver`. When the sampler raises, what waits
is told, and the process ends: a crash is an exit code, and the supervisor starts anew.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tunesmith.errors import EngineError, TunesmithError
from tunesmith.models.generate import Request, ScoreRequest, Token

Deliver = Callable[[Token | TunesmithError], None]


class Sampling(Protocol):
    """What the engine needs of `models.generate.Sampler`, which says more."""

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names that requests may use."""
        ...

    @property
    def idle(self) -> bool:
        """Nothing is waiting or being answered."""
        ...

    @property
    def max_rows(self) -> int:
        """Rows that are decoded together."""
        ...

    def add_adapter(self, name: str, folder: Path) -> None:
        """Load an adapter; one of the same name is replaced."""
        ...

    def remove_adapter(self, name: str) -> None:
        """Forget an adapter."""
        ...

    def submit(self, request: Request) -> None:
        """Queue a request."""
        ...

    def cancel(self, request_id: str) -> None:
        """Drop a request."""
        ...

    def step(self) -> list[Token]:
        """One token for each active row."""
        ...

    def read(self, sequences: Sequence[ScoreRequest]) -> list[list[Token]]:
        """Each token of each answer as if it had been sampled."""
        ...


@dataclass(frozen=True, slots=True)
class _Submit:
    request: Request
    deliver: Deliver


@dataclass(frozen=True, slots=True)
class _Cancel:
    request_id: str


@dataclass(frozen=True, slots=True)
class _Read:
    request: ScoreRequest
    future: Future[list[Token]]


@dataclass(frozen=True, slots=True)
class _Change:
    adapter: str
    function: Callable[[], None]
    future: Future[None]


_Command = _Submit | _Cancel | _Read | _Change
CLOSE = None


class SamplerThread:
    """Runs the sampler in a thread of its own.

    Args:
        sampler: what decodes; from now on only this thread may touch it.
        on_crash: called, in the engine thread, when the sampler raised.
    """

    def __init__(self, sampler: Sampling, *, on_crash: Callable[[], None] | None = None) -> None:
        self._sampler, self._on_crash = sampler, on_crash
        self._commands: queue.SimpleQueue[_Command | None] = queue.SimpleQueue()
        self._active: dict[str, tuple[str | None, Deliver]] = {}
        self._lock = threading.Lock()
        self._open = True
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """Stop after the step in hand and wait for it; whatever waits is told."""
        self._commands.put(CLOSE)
        self._thread.join()

    def submit(self, request: Request, deliver: Deliver) -> None:
        """Queue a request; each of its tokens, or the error that ends it, goes to `deliver`."""
        self._put(_Submit(request, deliver))

    def cancel(self, request_id: str) -> None:
        """Free the request's slot; unknown and finished ids are fine."""
        self._put(_Cancel(request_id))

    async def read(self, request: ScoreRequest) -> list[Token]:
        """Each token of a given answer; concurrent calls are computed together."""
        future: Future[list[Token]] = Future()
        self._put(_Read(request, future))
        return await asyncio.wrap_future(future)

    async def change_adapter(self, name: str, function: Callable[[], None]) -> None:
        """Run `function`, which loads or drops an adapter, between steps.

        Requests that are still answered with the old weights of that name end with an error.
        """
        future: Future[None] = Future()
        self._put(_Change(name, function, future))
        await asyncio.wrap_future(future)

    def _put(self, command: _Command) -> None:
        with self._lock:
            if self._open:
                self._commands.put(command)
                return
        _fail(command, _stopped())

    def _run(self) -> None:
        crashed = True
        try:
            self._serve()
            crashed = False
        finally:
            self._shut()
            if crashed and self._on_crash is not None:
                self._on_crash()

    def _serve(self) -> None:
        while (commands := self._take()) is not None:
            self._obey(commands)
            if self._sampler.idle:
                continue
            for token in self._sampler.step():
                _, deliver = self._active[token.request]
                if token.finish:
                    del self._active[token.request]
                deliver(token)

    def _take(self) -> list[_Command] | None:
        """All commands that wait; blocks while there is nothing to decode. None: close."""
        taken: list[_Command | None] = []
        if self._sampler.idle:
            taken.append(self._commands.get())
        while not self._commands.empty():
            taken.append(self._commands.get())
        commands = [command for command in taken if command is not None]
        if len(commands) == len(taken):
            return commands
        for command in commands:
            _fail(command, _stopped())
        return None

    def _obey(self, commands: Sequence[_Command]) -> None:
        reads: list[_Read] = []
        for command in commands:
            match command:
                case _Submit(request, deliver):
                    self._submit(request, deliver)
                case _Cancel(request_id):
                    if self._active.pop(request_id, None) is not None:
                        self._sampler.cancel(request_id)
                case _Change(adapter, function, future):
                    self._read(reads)
                    reads = []
                    self._withdraw(adapter)
                    _settle(future, function)
                case _Read(request, future):
                    if request.adapter is not None and not self._has(request.adapter):
                        _fail(command, _gone(request.adapter))
                    elif future.set_running_or_notify_cancel():
                        reads.append(command)
        self._read(reads)

    def _submit(self, request: Request, deliver: Deliver) -> None:
        if request.adapter is not None and not self._has(request.adapter):
            deliver(_gone(request.adapter))
            return
        self._sampler.submit(request)
        self._active[request.id] = (request.adapter, deliver)

    def _has(self, adapter: str) -> bool:
        """Whether it is still there: it may have gone since the request was accepted."""
        return adapter in self._sampler.adapters

    def _withdraw(self, adapter: str) -> None:
        users = [name for name, (used, _) in self._active.items() if used == adapter]
        for request_id in users:
            _, deliver = self._active.pop(request_id)
            self._sampler.cancel(request_id)
            deliver(_gone(adapter))

    def _read(self, commands: Sequence[_Read]) -> None:
        if commands:
            results = self._sampler.read([command.request for command in commands])
            for command, result in zip(commands, results, strict=True):
                command.future.set_result(result)

    def _shut(self) -> None:
        with self._lock:
            self._open = False
        while not self._commands.empty():
            command = self._commands.get()
            if command is not None:
                _fail(command, _stopped())
        for _, deliver in self._active.values():
            deliver(_stopped())
        self._active.clear()


def _stopped() -> EngineError:
    return EngineError("the engine stopped while it worked on the request")


def _gone(adapter: str) -> EngineError:
    return EngineError(f"the adapter {adapter} was removed or replaced meanwhile")


def _settle(future: Future[None], function: Callable[[], None]) -> None:
    # Once asked for, a change is made, whether or not the one who asked still waits.
    listening = future.set_running_or_notify_cancel()
    try:
        function()
    except TunesmithError as error:
        if listening:
            future.set_exception(error)
    else:
        if listening:
            future.set_result(None)


def _fail(command: _Command, error: EngineError) -> None:
    match command:
        case _Submit(_, deliver):
            deliver(error)
        case _Cancel():
            pass
        case _Read(_, future) | _Change(_, _, future):
            if future.set_running_or_notify_cancel():
                future.set_exception(error)
