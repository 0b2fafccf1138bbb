"""/v1/fine_tuning/jobs: made once however often they are asked for, looked at, and steered."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import Field

from tunesmith.api.models import ModelRoutes
from tunesmith.api.pages import (
    After,
    Body,
    Limit,
    Name,
    Plain,
    labels,
    listed,
    router,
    turn,
    unlabelled,
)
from tunesmith.api.who import Who, who
from tunesmith.serve.wire import Refusal
from tunesmith.serve.wire_tools import Metadata
from tunesmith.settings import Settings
from tunesmith.store import Store
from tunesmith.store.database import new_id
from tunesmith.store.jobs import Job, JobCheckpoint, JobEvent

BUSY_SECONDS = 60
"""When a project that has too many open jobs may try again."""
METHODS = ("supervised",)
"""What jobs can do."""
Auto = Literal["auto"]


class Hyperparameters(Body):
    """`auto` lets the worker choose, and the job show what it chose."""

    batch_size: Auto | Annotated[int, Field(ge=1, le=256)] = "auto"
    learning_rate_multiplier: Auto | Annotated[float, Field(gt=0, allow_inf_nan=False)] = "auto"
    n_epochs: Auto | Annotated[int, Field(ge=1, le=50)] = "auto"


class Supervised(Body):
    """How to learn from answers."""

    hyperparameters: Hyperparameters | None = None


class Method(Body):
    """What to do; of the others than `supervised` only the names are read."""

    type: Literal["supervised", "dpo", "reinforcement"]
    supervised: Supervised | None = None
    dpo: Any = None
    reinforcement: Any = None


class JobRequest(Body):
    """POST /v1/fine_tuning/jobs."""

    model: Name
    training_file: Name
    validation_file: Name | None = None
    suffix: Annotated[Plain, Field(min_length=1, max_length=64)] | None = None
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    method: Method | None = None
    hyperparameters: Hyperparameters | None = None
    metadata: Metadata | None = None
    integrations: list[Any] | None = None

    def hyper(self) -> Hyperparameters:
        """The hyperparameters from where OpenAI has them now, or had them before.

        Raises:
            Refusal: the method is none of ours, or they are in both places.
        """
        method = self.method or Method(type="supervised")
        if method.type not in METHODS:
            raise Refusal(
                f"This server trains by {', '.join(METHODS)} only; '{method.type}' is not there yet.",
                param="method.type",
                code="unsupported_method",
            )
        for other in ("dpo", "reinforcement"):
            if getattr(method, other) is not None:
                raise Refusal(
                    f"'method.{other}' does not belong to the method '{method.type}'.",
                    param=f"method.{other}",
                    code="invalid_value",
                )
        new = None if method.supervised is None else method.supervised.hyperparameters
        if new is not None and self.hyperparameters is not None:
            raise Refusal(
                "'hyperparameters' and 'method.supervised.hyperparameters' say the same; send one.",
                param="hyperparameters",
                code="invalid_value",
            )
        return new or self.hyperparameters or Hyperparameters()


class JobRoutes:
    """The routes of fine-tuning jobs."""

    def __init__(self, store: Store, models: ModelRoutes, settings: Settings) -> None:
        self._store, self._models, self._settings = store, models, settings

    def routes(self) -> APIRouter:
        """The routes."""
        out = router()
        at = "/fine_tuning/jobs"
        out.add_api_route(at, self.create, methods=["POST"])
        out.add_api_route(at, self.list, methods=["GET"])
        out.add_api_route(at + "/{job_id}", self.show, methods=["GET"])
        out.add_api_route(at + "/{job_id}/events", self.events, methods=["GET"])
        out.add_api_route(at + "/{job_id}/checkpoints", self.checkpoints, methods=["GET"])
        for route in (self.cancel, self.pause, self.resume):
            out.add_api_route(f"{at}/{{job_id}}/{route.__name__}", route, methods=["POST"])
        return out

    async def create(self, body: JobRequest, request: Request) -> dict[str, Any]:
        """POST /v1/fine_tuning/jobs. What is sent twice makes one job."""
        asker = who(request)
        asker.may("write")
        hyper = body.hyper()
        if body.integrations:
            raise Refusal(
                "This server reports to no other service: leave 'integrations' out. Events and the "
                "result file have every figure.",
                param="integrations",
                code="unsupported_parameter",
            )
        base = await self._models.base(body.model, asker.project)
        await asyncio.to_thread(self._check_files, asker.project, body)
        job = _job(body, hyper, base, asker)
        most = self._settings.max_open_jobs
        made = await asyncio.to_thread(self._store.jobs.create, job, most=most)
        if made is None:
            raise Refusal(
                f"This project has {most} jobs that wait or run, and may have no more.",
                status=429,
                kind="rate_limit_error",
                code="too_many_jobs",
                retry_after=BUSY_SECONDS,
            )
        return await self._body(made)

    async def list(
        self, request: Request, after: After = None, limit: Limit = 20
    ) -> dict[str, Any]:
        """GET /v1/fine_tuning/jobs, newest first."""
        page = await turn(
            lambda: self._store.jobs.list(
                who(request).project,
                metadata=labels(request),
                bare=unlabelled(request),
                after=after,
                limit=limit,
            )
        )
        return listed([await self._body(job) for job in page.rows], has_more=page.has_more)

    async def show(self, job_id: str, request: Request) -> dict[str, Any]:
        """GET /v1/fine_tuning/jobs/{job_id}."""
        return await self._body(await self._found(who(request), job_id))

    async def cancel(self, job_id: str, request: Request) -> dict[str, Any]:
        """POST /v1/fine_tuning/jobs/{job_id}/cancel."""
        return await self._turn(job_id, request, self._store.jobs.cancel, "open", "cancelled")

    async def pause(self, job_id: str, request: Request) -> dict[str, Any]:
        """POST /v1/fine_tuning/jobs/{job_id}/pause."""
        wanted = "queued or running"
        return await self._turn(job_id, request, self._store.jobs.pause, wanted, "paused")

    async def resume(self, job_id: str, request: Request) -> dict[str, Any]:
        """POST /v1/fine_tuning/jobs/{job_id}/resume."""
        return await self._turn(job_id, request, self._store.jobs.resume, "paused", "resumed")

    async def events(
        self,
        job_id: str,
        request: Request,
        after: After = None,
        limit: Annotated[int, Query(ge=1, le=1_000)] = 20,
    ) -> dict[str, Any]:
        """GET /v1/fine_tuning/jobs/{job_id}/events, newest first."""
        job = await self._found(who(request), job_id)
        page = await turn(lambda: self._store.jobs.events(job.id, after=after, limit=limit))
        return listed([_event(event) for event in page.rows], has_more=page.has_more)

    async def checkpoints(
        self, job_id: str, request: Request, after: After = None, limit: Limit = 10
    ) -> dict[str, Any]:
        """GET /v1/fine_tuning/jobs/{job_id}/checkpoints, newest first."""
        job = await self._found(who(request), job_id)
        page = await turn(lambda: self._store.jobs.checkpoints(job.id, after=after, limit=limit))
        return listed([_checkpoint(item) for item in page.rows], has_more=page.has_more)

    async def _found(self, asker: Who, job_id: str) -> Job:
        job = await asyncio.to_thread(self._store.jobs.get, job_id, asker.project)
        if job is None:
            raise Refusal(
                f"Could not find fine tune: {job_id}",
                status=404,
                param="fine_tune_id",
                code="fine_tune_not_found",
            )
        return job

    async def _turn(
        self,
        job_id: str,
        request: Request,
        change: Callable[[str, str], Job | None],
        wanted: str,
        done: str,
    ) -> dict[str, Any]:
        """Change the state of a job that is in one for it."""
        asker = who(request)
        asker.may("write")
        job = await self._found(asker, job_id)
        changed = await asyncio.to_thread(change, job_id, asker.project)
        if changed is None:
            job = await self._found(asker, job_id)
            raise Refusal(
                f"Job {job_id} is {job.status}: only one that is {wanted} can be {done}.",
                param="fine_tune_id",
                code="invalid_job_status",
            )
        return await self._body(changed)

    def _check_files(self, project: str, body: JobRequest) -> None:
        for param in ("training_file", "validation_file"):
            file_id: str | None = getattr(body, param)
            if file_id is None:
                continue
            file = self._store.files.get(project, file_id)
            if file is None:
                said = f"File '{file_id}' does not exist."
            elif file.purpose != "fine-tune":
                said = f"File '{file_id}' has the purpose '{file.purpose}', not 'fine-tune'."
            else:
                continue
            raise Refusal(said, param=param, code="invalid_file")

    async def _body(self, job: Job) -> dict[str, Any]:
        """A job as the API shows it."""
        place = (
            {"queue_position": await asyncio.to_thread(self._store.jobs.ahead, job) + 1}
            if job.status == "queued"
            else {}
        )
        return {
            "id": job.id,
            "object": "fine_tuning.job",
            "created_at": int(job.created_at),
            "finished_at": _seconds(job.finished_at),
            "model": job.model,
            "fine_tuned_model": job.fine_tuned_model,
            "organization_id": self._settings.organization,
            "status": job.status,
            "training_file": job.training_file,
            "validation_file": job.validation_file,
            "result_files": [] if job.result_file is None else [job.result_file],
            "trained_tokens": job.trained_tokens,
            "error": job.error,
            "hyperparameters": job.method[job.method["type"]].get("hyperparameters", {}),
            "method": job.method,
            "seed": job.seed,
            "estimated_finish": _seconds(job.estimated_finish),
            "integrations": [],
            "metadata": job.metadata,
            "user_provided_suffix": job.suffix,
            "usage_metrics": None,
            "shared_with_openai": False,
            **place,
        }


def _job(body: JobRequest, hyper: Hyperparameters, base: str, asker: Who) -> Job:
    method = {"type": "supervised", "supervised": {"hyperparameters": hyper.model_dump()}}
    asked: dict[str, Any] = {
        "model": body.model,
        "training_file": body.training_file,
        "validation_file": body.validation_file,
        "suffix": body.suffix,
        "method": method,
        "metadata": body.metadata or None,
    }
    whole = json.dumps([asker.project, asker.key, asked, body.seed], sort_keys=True)
    fingerprint = hashlib.sha256(whole.encode()).hexdigest()
    # A seed that follows from the rest is the same when the create is sent again.
    seed = int(fingerprint[:8], 16) >> 1 if body.seed is None else body.seed
    return Job(
        id=new_id("ftjob-"),
        project=asker.project,
        key=asker.key,
        fingerprint=fingerprint,
        base=base,
        seed=seed,
        status="validating_files",
        created_at=time.time(),
        **asked,
    )


def _event(event: JobEvent) -> dict[str, Any]:
    return {
        "id": event.id,
        "object": "fine_tuning.job.event",
        "created_at": int(event.created_at),
        "level": event.level,
        "type": event.type,
        "message": event.message,
        "data": event.data or {},
    }


def _checkpoint(item: JobCheckpoint) -> dict[str, Any]:
    return {
        "id": item.id,
        "object": "fine_tuning.job.checkpoint",
        "created_at": int(item.created_at),
        "fine_tuned_model_checkpoint": item.model,
        "step_number": item.step,
        "fine_tuning_job_id": item.job,
        "metrics": {name: value for name, value in item.metrics.items() if value is not None},
    }


def _seconds(at: float | None) -> int | None:
    return None if at is None else int(at)
