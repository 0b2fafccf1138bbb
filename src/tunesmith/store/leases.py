"""A worker's side of the jobs: taken for the length of a lease, and written to while they are held.

A worker that does not beat loses its jobs to others. Everything that a worker writes about a job is
written only while the job is its own, and under ids that follow from what happened, so that a step
that is done again after a kill is not told twice.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa

from tunesmith.store.database import put_once
from tunesmith.store.files import File
from tunesmith.store.jobs import Job, JobCheckpoint, JobEvent, Level, one
from tunesmith.store.models import RegisteredModel, register
from tunesmith.store.tables import checkpoints, events, files, jobs
from tunesmith.store.webhooks import announce


@dataclass(frozen=True, slots=True)
class Told:
    """An event to be told. What has its key has been told already."""

    key: str
    message: str
    level: Level = "info"
    data: Mapping[str, Any] | None = None
    at: float | None = None
    """Seconds since 1970; None is now."""


class Leases:
    """What workers do with the table of jobs."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def claim(self, worker: str, *, train: bool, lease: float) -> Job | None:
        """Take the oldest job that nobody works on: to check its files, or to train.

        A job whose worker's lease has run out is taken from it.
        """
        now = time.time()
        wanted = ("queued", "running") if train else ("validating_files",)
        free = jobs.c.status.in_(wanted) & (
            jobs.c.lease_until.is_(None) | (jobs.c.lease_until < now)
        )
        oldest = sa.select(jobs.c.id).where(free).order_by(jobs.c.seq).limit(1)
        oldest = oldest.with_for_update(skip_locked=True)
        taken: dict[str, Any] = {
            "worker": worker,
            "lease_until": now + lease,
            "attempts": jobs.c.attempts + 1,
        }
        if train:
            taken |= {
                "status": "running",
                "started_at": sa.func.coalesce(jobs.c.started_at, now),
            }
        with self._engine.begin() as connection:
            found = connection.scalar(oldest)
            if found is None:
                return None
            connection.execute(sa.update(jobs).where(jobs.c.id == found).values(taken))
            job = one(connection, found, None)
            if train:
                _once(connection, found, Told("started", "Fine-tuning job started"))
        return job

    def beat(self, job: Job, worker: str, lease: float) -> bool:
        """Hold a job a lease longer; False when it is not to be worked on any more."""
        working = ("running",) if job.status == "running" else ("validating_files",)
        own = (jobs.c.id == job.id) & (jobs.c.worker == worker) & jobs.c.status.in_(working)
        with self._engine.begin() as connection:
            changed = connection.execute(
                sa.update(jobs).where(own).values(lease_until=time.time() + lease)
            )
        return changed.rowcount == 1

    def release(self, job: Job, worker: str) -> None:
        """Give a job back, whatever has become of it: nothing of this worker's runs any more."""
        own = (jobs.c.id == job.id) & (jobs.c.worker == worker)
        idle = {"worker": None, "lease_until": None}
        with self._engine.begin() as connection:
            connection.execute(sa.update(jobs).where(own).values(idle))
            connection.execute(
                sa.update(jobs)
                .where(
                    (jobs.c.id == job.id) & (jobs.c.status == "running"), jobs.c.worker.is_(None)
                )
                .values(status="queued")
            )

    def checked(
        self, job: Job, worker: str, *, method: Mapping[str, Any], estimated: float | None
    ) -> bool:
        """The files are in order: queue the job, with numbers where `auto` was."""
        values = {
            "status": "queued",
            "method": dict(method),
            "estimated_finish": estimated,
            "worker": None,
            "lease_until": None,
            "attempts": 0,
        }
        told = Told("queued", "Files validated, moving job to queued state")
        return self._written(job, worker, values, told)

    def fail(self, job: Job, worker: str, error: Mapping[str, Any]) -> bool:
        """End a job that cannot go on."""
        values = {
            "status": "failed",
            "error": dict(error),
            "finished_at": time.time(),
            "estimated_finish": None,
            "worker": None,
            "lease_until": None,
        }
        told = Told("failed", str(error["message"]), level="error")
        return self._written(job, worker, values, told)

    def progress(self, job: Job, worker: str, *, estimated: float) -> None:
        """Note when the job will be done."""
        own = _held(job, worker)
        with self._engine.begin() as connection:
            connection.execute(sa.update(jobs).where(own).values(estimated_finish=estimated))

    def tell(self, job: Job, worker: str, told: Sequence[Told]) -> None:
        """Add events, each once, while the job is the worker's."""
        with self._engine.begin() as connection:
            if _owned(connection, job, worker):
                for item in told:
                    _once(connection, job.id, item)

    def saved(
        self, job: Job, worker: str, step: int, metrics: Mapping[str, Any], model: RegisteredModel
    ) -> None:
        """Add a checkpoint and register its model, once; the job has got further."""
        made = JobCheckpoint(
            _derived("ftckpt_", job.id, str(step)),
            job.id,
            time.time(),
            step,
            model.name,
            dict(metrics),
        )
        with self._engine.begin() as connection:
            if not _owned(connection, job, worker):
                return
            if put_once(connection, checkpoints, asdict(made)):
                register(connection, model)
            connection.execute(sa.update(jobs).where(jobs.c.id == job.id).values(attempts=0))

    def succeed(
        self, job: Job, worker: str, *, model: RegisteredModel, result: File, trained_tokens: int
    ) -> bool:
        """End a job with its model and its result file, all at once."""
        values = {
            "status": "succeeded",
            "finished_at": time.time(),
            "estimated_finish": None,
            "fine_tuned_model": model.name,
            "result_file": result.id,
            "trained_tokens": trained_tokens,
            "worker": None,
            "lease_until": None,
        }
        with self._engine.begin() as connection:
            own = _held(job, worker)
            if connection.execute(sa.update(jobs).where(own).values(values)).rowcount != 1:
                return False
            register(connection, model)
            put_once(connection, files, asdict(result))
            for told in (
                Told("model", f"New fine-tuned model created: {model.name}"),
                Told("succeeded", "The job has successfully completed"),
            ):
                _once(connection, job.id, told)
            announce(connection, job.project, "fine_tuning.job.succeeded", job.id)
        return True

    def _written(self, job: Job, worker: str, values: Mapping[str, Any], told: Told) -> bool:
        own = _held(job, worker) & (jobs.c.status == job.status)
        with self._engine.begin() as connection:
            if connection.execute(sa.update(jobs).where(own).values(**values)).rowcount != 1:
                return False
            _once(connection, job.id, told)
            if values["status"] == "failed":
                announce(connection, job.project, "fine_tuning.job.failed", job.id)
        return True


def _held(job: Job, worker: str) -> sa.ColumnElement[bool]:
    return (
        (jobs.c.id == job.id)
        & (jobs.c.worker == worker)
        & jobs.c.status.in_(("validating_files", "running"))
    )


def _owned(connection: sa.Connection, job: Job, worker: str) -> bool:
    query = sa.select(jobs.c.id).where(_held(job, worker)).with_for_update()
    return connection.scalar(query) is not None


def _derived(prefix: str, job: str, key: str) -> str:
    """An id that follows from what it names, so that it is given once."""
    return prefix + hashlib.sha256(f"{job}/{key}".encode()).hexdigest()[:24]


def _once(connection: sa.Connection, job: str, told: Told) -> None:
    made = JobEvent(
        _derived("ftevent-", job, told.key),
        job,
        told.at or time.time(),
        told.level,
        "message" if told.data is None else "metrics",
        told.message,
        None if told.data is None else dict(told.data),
    )
    put_once(connection, events, asdict(made))
