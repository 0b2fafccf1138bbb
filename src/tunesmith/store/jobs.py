"""Fine-tuning jobs as their owner sees them: made, looked at, cancelled, paused, gone on with."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import sqlalchemy as sa

from tunesmith.store.database import Page, alone, has, new_id, page, put_once
from tunesmith.store.tables import checkpoints, events, jobs, permissions
from tunesmith.store.webhooks import announce

Status = Literal[
    "validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"
]
OPEN = ("validating_files", "queued", "running", "paused")
SAME_SECONDS = 600.0
"""How long an identical create is the same job: the SDK's own timeout, after which it tries again."""
Level = Literal["info", "warn", "error"]


@dataclass(frozen=True, slots=True)
class Job:
    """A fine-tuning job. Times are seconds since 1970, UTC."""

    id: str
    project: str
    key: str | None
    fingerprint: str
    """Hash of what was asked for, and by whom."""
    model: str
    """As it was asked for."""
    base: str
    """The local base that it stands for."""
    training_file: str
    validation_file: str | None
    suffix: str | None
    seed: int
    method: dict[str, Any]
    """As in the API: {"type", TYPE: {"hyperparameters"}}; `auto` gives way to numbers."""
    metadata: dict[str, str] | None
    status: Status
    created_at: float
    error: dict[str, Any] | None = None
    started_at: float | None = None
    finished_at: float | None = None
    estimated_finish: float | None = None
    trained_tokens: int | None = None
    fine_tuned_model: str | None = None
    result_file: str | None = None
    worker: str | None = None
    lease_until: float | None = None
    attempts: int = 0


@dataclass(frozen=True, slots=True)
class JobEvent:
    """Something that happened to a job."""

    id: str
    job: str
    created_at: float
    level: Level
    type: Literal["message", "metrics"]
    message: str
    data: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class JobCheckpoint:
    """A checkpoint that serves under a name of its own."""

    id: str
    job: str
    created_at: float
    step: int
    model: str
    metrics: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Permission:
    """A checkpoint that another project may use."""

    id: str
    model: str
    project: str
    created_at: float


class Jobs:
    """The table of jobs, their events and checkpoints."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def create(self, job: Job, *, most: int) -> Job | None:
        """Queue a job; the same one, asked for again while it is open, is the one that is there.

        Args:
            most: open jobs that the project may have. None is returned when it has that many.
        """
        same = (
            (jobs.c.fingerprint == job.fingerprint)
            & jobs.c.status.in_(OPEN)
            & (jobs.c.created_at > job.created_at - SAME_SECONDS)
        )
        open_ = (jobs.c.project == job.project) & jobs.c.status.in_(OPEN)
        with self._engine.begin() as connection:
            alone(connection, f"create {job.project}")
            rows, _ = page(connection, jobs, same, after=None, limit=1)
            if rows:
                return Job(**rows[0])
            if (connection.scalar(sa.select(sa.func.count()).where(open_)) or 0) >= most:
                return None
            connection.execute(sa.insert(jobs).values(asdict(job)))
            _tell(connection, job.id, f"Created fine-tuning job: {job.id}")
            _tell(connection, job.id, f"Validating training file: {job.training_file}")
        return job

    def get(self, job_id: str, project: str | None = None) -> Job | None:
        """A job, where it is the project's."""
        with self._engine.begin() as connection:
            return one(connection, job_id, project)

    def list(
        self,
        project: str,
        *,
        metadata: Mapping[str, str] | None = None,
        bare: bool = False,
        after: str | None = None,
        limit: int = 20,
    ) -> Page[Job]:
        """Jobs of the project, newest first; those with at least these metadata, or with none."""
        wanted = jobs.c.project == project
        wanted &= has(jobs.c.metadata, metadata or {}, self._engine.dialect.name)
        if bare:
            wanted &= jobs.c.metadata.is_(None)
        with self._engine.begin() as connection:
            rows, more = page(connection, jobs, wanted, after=after, limit=limit)
        return Page(tuple(Job(**row) for row in rows), more)

    def ahead(self, job: Job) -> int:
        """How many jobs are trained before this one that waits."""
        seq = sa.select(jobs.c.seq).where(jobs.c.id == job.id).scalar_subquery()
        before = (jobs.c.status == "running") | ((jobs.c.status == "queued") & (jobs.c.seq < seq))
        with self._engine.begin() as connection:
            return connection.scalar(sa.select(sa.func.count()).where(before)) or 0

    def counts(self) -> dict[str, int]:
        """Jobs by status."""
        query = sa.select(jobs.c.status, sa.func.count()).group_by(jobs.c.status)
        with self._engine.begin() as connection:
            return {status: count for status, count in connection.execute(query)}  # noqa: C416

    def readers(self, file_id: str) -> dict[str, Status]:
        """Jobs that read this file, or have read it, with their status."""
        named = (jobs.c.training_file == file_id) | (jobs.c.validation_file == file_id)
        query = sa.select(jobs.c.id, jobs.c.status).where(named).order_by(jobs.c.seq)
        with self._engine.begin() as connection:
            return {row.id: row.status for row in connection.execute(query)}

    def cancel(self, job_id: str, project: str) -> Job | None:
        """End a job that is open; its worker sees it and stops the process."""
        ended = {"status": "cancelled", "finished_at": time.time(), "estimated_finish": None}
        return self._turn(job_id, project, OPEN, ended, "Fine-tuning job cancelled")

    def pause(self, job_id: str, project: str) -> Job | None:
        """Let a job rest at its newest checkpoint."""
        said = "Fine-tuning job paused"
        held = {"status": "paused", "estimated_finish": None}
        return self._turn(job_id, project, ("queued", "running"), held, said)

    def resume(self, job_id: str, project: str) -> Job | None:
        """Queue a paused job again."""
        return self._turn(job_id, project, ("paused",), {"status": "queued"}, "Job resumed")

    def events(self, job_id: str, *, after: str | None = None, limit: int = 20) -> Page[JobEvent]:
        """Events of a job, newest first."""
        with self._engine.begin() as connection:
            rows, more = page(connection, events, events.c.job == job_id, after=after, limit=limit)
        return Page(tuple(JobEvent(**row) for row in rows), more)

    def checkpoints(
        self, job_id: str, *, after: str | None = None, limit: int = 10
    ) -> Page[JobCheckpoint]:
        """Checkpoints of a job, newest first."""
        with self._engine.begin() as connection:
            rows, more = page(
                connection, checkpoints, checkpoints.c.job == job_id, after=after, limit=limit
            )
        return Page(tuple(JobCheckpoint(**row) for row in rows), more)

    def permit(self, model: str, projects: tuple[str, ...]) -> tuple[Permission, ...]:
        """Let other projects use a checkpoint."""
        made = tuple(Permission(new_id("cp_"), model, to, time.time()) for to in projects)
        wanted = (permissions.c.model == model) & permissions.c.project.in_(projects)
        with self._engine.begin() as connection:
            for item in made:
                put_once(connection, permissions, asdict(item))
            rows, _ = page(connection, permissions, wanted, after=None, limit=len(projects) or 1)
        return tuple(Permission(**row) for row in rows)

    def permissions(
        self,
        model: str,
        *,
        project: str | None = None,
        after: str | None = None,
        limit: int = 10,
        ascending: bool = False,
    ) -> Page[Permission]:
        """Who may use a checkpoint beside its own project."""
        wanted = permissions.c.model == model
        if project is not None:
            wanted &= permissions.c.project == project
        with self._engine.begin() as connection:
            rows, more = page(
                connection, permissions, wanted, after=after, limit=limit, ascending=ascending
            )
        return Page(tuple(Permission(**row) for row in rows), more)

    def forbid(self, model: str, permission_id: str) -> bool:
        """Take a permission back; False when there is none of that id."""
        wanted = (permissions.c.model == model) & (permissions.c.id == permission_id)
        with self._engine.begin() as connection:
            return connection.execute(sa.delete(permissions).where(wanted)).rowcount == 1

    def _turn(
        self,
        job_id: str,
        project: str,
        before: tuple[str, ...],
        values: Mapping[str, Any],
        said: str,
    ) -> Job | None:
        """Change a job's status at its owner's wish; None where it is not in a state for it."""
        own = (jobs.c.id == job_id) & (jobs.c.project == project) & jobs.c.status.in_(before)
        with self._engine.begin() as connection:
            if connection.execute(sa.update(jobs).where(own).values(**values)).rowcount != 1:
                return None
            _tell(connection, job_id, said)
            if values["status"] == "cancelled":
                announce(connection, project, "fine_tuning.job.cancelled", job_id)
            return one(connection, job_id, project)


def one(connection: sa.Connection, job_id: str, project: str | None) -> Job | None:
    """A job, where it is the project's."""
    own = sa.true() if project is None else jobs.c.project == project
    rows, _ = page(connection, jobs, (jobs.c.id == job_id) & own, after=None, limit=1)
    return Job(**rows[0]) if rows else None


def _tell(connection: sa.Connection, job: str, message: str) -> None:
    """An event that may happen again: a job can be paused twice."""
    made = JobEvent(new_id("ftevent-"), job, time.time(), "info", "message", message)
    connection.execute(sa.insert(events).values(asdict(made)))
