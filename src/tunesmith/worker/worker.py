"""A worker: takes jobs from the store, runs each of their steps as a process, and writes down how
it went. Any number of them work on one store; any of them may be killed at any moment.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from sqlalchemy.exc import DBAPIError

from tunesmith.pipeline.folder import RunFolder
from tunesmith.settings import Settings
from tunesmith.store import Store
from tunesmith.store.blobs import Blobs, remove_copies
from tunesmith.store.jobs import Job
from tunesmith.worker.process import COMMAND, StepProcess
from tunesmith.worker.record import Record
from tunesmith.worker.webhooks import deliver

POLL_SECONDS = 0.5
"""How soon a new job is seen, and that one is cancelled."""
SWEEP_SECONDS = 60.0


class Worker:
    """Works until it is told to stop.

    Args:
        home: TUNESMITH_HOME; jobs have their run folders in it.
        command: what runs a step.
    """

    def __init__(
        self, store: Store, home: Path, settings: Settings, *, command: Sequence[str] = COMMAND
    ) -> None:
        self._store, self._home, self._settings, self._command = store, home, settings, command
        self._blobs = Blobs(home / "files")
        self.name = f"{socket.gethostname()[:32]}-{os.getpid()}-{secrets.token_hex(4)}"

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set; what is under way is then given back."""
        async with asyncio.TaskGroup() as slots:
            slots.create_task(self._sweep(stop))
            slots.create_task(deliver(self._store, self._settings, stop))
            slots.create_task(self._slot(stop, train=False, device=None))
            for device in _devices(self._settings.slots):
                slots.create_task(self._slot(stop, train=True, device=device))

    async def _slot(self, stop: asyncio.Event, *, train: bool, device: str | None) -> None:
        lease = self._settings.lease_seconds
        while not stop.is_set():
            try:
                job = await asyncio.to_thread(
                    self._store.leases.claim, self.name, train=train, lease=lease
                )
                if job is not None:
                    await self._work(job, stop, device)
                    continue
            except DBAPIError:
                # The database is away. What was claimed goes back when its lease has run out.
                pass
            await _pause(stop, POLL_SECONDS)

    async def _work(self, job: Job, stop: asyncio.Event, device: str | None) -> None:
        """One step of a job, from its claim to its end or to its being given back."""
        store, folder = self._store, RunFolder(self._home / "jobs" / job.id)
        record = Record(store, job, self.name, folder, self._settings.organization)
        if job.attempts > self._settings.attempts:
            said = f"The job crashed {job.attempts - 1} times without getting further; see its last warning."
            error = {"code": "server_error", "message": said, "param": None}
            await asyncio.to_thread(store.leases.fail, job, self.name, error)
            return
        extra = None if device is None else {"CUDA_VISIBLE_DEVICES": device}
        process = await StepProcess.start(
            self._spec(job, folder), folder.path, command=self._command, extra=extra
        )
        try:
            code = await self._watch(job, process, record, stop)
        finally:
            await process.end()
        if code is None or not await asyncio.to_thread(self._conclude, job, code, record):
            await asyncio.to_thread(store.leases.release, job, self.name)

    async def _watch(
        self, job: Job, process: StepProcess, record: Record, stop: asyncio.Event
    ) -> int | None:
        """Listen until the process ends; None when it is not to go on."""
        reading = asyncio.create_task(_listen(process, record))
        beating = asyncio.create_task(self._beat(job))
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({reading, beating, stopping}, return_when=asyncio.FIRST_COMPLETED)
            return reading.result() if reading.done() else None
        finally:
            for task in (reading, beating, stopping):
                task.cancel()
            await asyncio.gather(reading, beating, stopping, return_exceptions=True)

    async def _beat(self, job: Job) -> None:
        """Hold the lease; returns when the job is to be worked on no more, or the lease is over."""
        lease = self._settings.lease_seconds
        held = time.monotonic()
        while time.monotonic() - held < lease:
            await asyncio.sleep(min(POLL_SECONDS, lease / 4))
            try:
                if not await asyncio.to_thread(self._store.leases.beat, job, self.name, lease):
                    return
                held = time.monotonic()
            except DBAPIError:
                # It may be back before the lease is over.
                continue

    def _conclude(self, job: Job, code: int, record: Record) -> bool:
        """Write down how a step ended; False when the job is to be given back."""
        leases = self._store.leases
        if code == 0 and job.status == "validating_files":
            return leases.checked(job, self.name, method=_settled(job, record), estimated=None)
        if code == 0:
            return record.succeed(self._blobs)
        if record.error is not None:
            return leases.fail(job, self.name, record.error)
        return False

    def _spec(self, job: Job, folder: RunFolder) -> dict[str, Any]:
        asked: dict[str, Any] = job.method[job.method["type"]].get("hyperparameters") or {}
        given = {name: asked.get(name, "auto") for name in ("n_epochs", "batch_size")}
        validation = job.validation_file
        return {
            "step": "train" if job.status == "running" else "check",
            "folder": str(folder.path),
            "recipe": {
                "model": {"name": job.base},
                "data": {
                    "files": [str(self._blobs.path(job.training_file))],
                    "validation": 0 if validation is None else str(self._blobs.path(validation)),
                    "test": 0,
                },
                "train": {
                    "epochs": given["n_epochs"],
                    "batch_rows": given["batch_size"],
                    "seed": job.seed,
                },
            },
            "learning_rate_multiplier": asked.get("learning_rate_multiplier", "auto"),
            "files": {
                "training": self._named(job, job.training_file),
                "validation": None if validation is None else self._named(job, validation),
            },
        }

    def _named(self, job: Job, file_id: str) -> dict[str, str]:
        found = self._store.files.get(job.project, file_id)
        return {"id": file_id, "filename": file_id if found is None else found.filename}

    async def _sweep(self, stop: asyncio.Event) -> None:
        """Delete what has expired, now and then."""
        while not stop.is_set():
            # Where the database is away, there is a next time.
            with suppress(DBAPIError):
                await asyncio.to_thread(self._tidy)
            await _pause(stop, SWEEP_SECONDS)

    def _tidy(self) -> None:
        for gone in self._store.files.expire():
            self._blobs.remove(gone)
            for job in self._store.jobs.readers(gone):
                remove_copies(self._home, job)
        self._store.answers.expire()
        self._blobs.sweep(self._store.files.known())


async def _listen(process: StepProcess, record: Record) -> int:
    """Write down what the process says, as many events at a time as have come; its exit code."""
    waiting: list[dict[str, Any]] = []
    come, over = asyncio.Event(), False

    async def write() -> None:
        while waiting or not over:
            if not waiting:
                come.clear()
                await come.wait()
                continue
            batch = waiting[:]
            try:
                await asyncio.to_thread(record.take, batch)
            except DBAPIError:
                # Until it is back, or the lease is over and this is cancelled.
                await asyncio.sleep(POLL_SECONDS)
                continue
            del waiting[: len(batch)]

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(write())
        async for event in process.events():
            waiting.append(event)
            come.set()
        over = True
        come.set()
    return await process.wait()


async def _pause(stop: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(stop.wait(), seconds)
    except TimeoutError:
        return


def _settled(job: Job, record: Record) -> dict[str, Any]:
    """The method with numbers where `auto` was."""
    kind = job.method["type"]
    numbers = {**(job.method[kind].get("hyperparameters") or {}), **(record.checked or {})}
    return {**job.method, kind: {**job.method[kind], "hyperparameters": numbers}}


def _devices(slots: int) -> list[str | None]:
    """Which device each slot is for: one each where CUDA_VISIBLE_DEVICES names several."""
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    if len(named) < 2:
        return [None] * slots
    return [named[slot % len(named)] for slot in range(slots)]
