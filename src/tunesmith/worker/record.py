"""What a step says, written down: events, checkpoints, the result. Saying it twice changes nothing."""

from __future__ import annotations

import hashlib
import re
import statistics
import time
from collections import deque
from datetime import datetime
from pathlib import Path
from typing import Any

from tunesmith.models import fetch
from tunesmith.models.catalog import ModelSpec
from tunesmith.pipeline.folder import RunFolder
from tunesmith.pipeline.results import result_csv
from tunesmith.store import RegisteredModel, Store
from tunesmith.store.blobs import Blobs
from tunesmith.store.files import File
from tunesmith.store.jobs import Job
from tunesmith.store.leases import Told

RECENT = 20
"""Steps that an estimate goes by."""


class Record:
    """One job's way into the store. Called from one thread at a time.

    Args:
        worker: who holds the job; nothing is written once somebody else does.
        folder: the job's run folder.
        organization: the part of the tuned model's name that says whose it is.
    """

    def __init__(
        self, store: Store, job: Job, worker: str, folder: RunFolder, organization: str
    ) -> None:
        self._store, self._job, self._worker = store, job, worker
        self._folder, self._organization = folder, organization
        self._model: ModelSpec | None = None
        self._total = 0
        self._seconds: deque[float] = deque(maxlen=RECENT)
        self._metrics: dict[int, dict[str, Any]] = {}
        self.error: dict[str, Any] | None = None
        """What the step failed of, as the job will show it."""
        self.checked: dict[str, Any] | None = None
        """The numbers that `auto` became."""

    def take(self, events: list[dict[str, Any]]) -> None:
        """Write down some events, in their order."""
        told = [item for event in events for item in self._told(event)]
        if told:
            self._store.leases.tell(self._job, self._worker, told)
        for event in events:
            if event["type"] == "checkpoint" and event["step"] > 0:
                self._checkpoint(int(event["step"]))
        if self._seconds and any(event["type"] == "step" for event in events):
            left = self._total - max(self._metrics, default=0)
            done = time.time() + left * statistics.median(self._seconds)
            self._store.leases.progress(self._job, self._worker, estimated=done)

    def succeed(self, blobs: Blobs) -> bool:
        """Register the model and end the job; False when it is no longer the worker's."""
        events = self._folder.events()
        content = result_csv(events).encode()
        file_id = "file-" + hashlib.sha256(f"{self._job.id}/result".encode()).hexdigest()[:24]
        blobs.put(file_id, content)
        tokens = {event["step"]: event["tokens"] for event in events if event["type"] == "step"}
        return self._store.leases.succeed(
            self._job,
            self._worker,
            model=self._registered(self._name, self._folder.adapter),
            result=File(
                file_id,
                self._job.project,
                "step_metrics.csv",
                "fine-tune-results",
                len(content),
                time.time(),
            ),
            trained_tokens=sum(tokens.values()),
        )

    def _told(self, event: dict[str, Any]) -> list[Told]:
        kind, step, at = event["type"], event.get("step"), _when(event)
        if kind == "message":
            return [Told(f"said-{event['key']}", event["message"], event["level"], at=at)]
        if kind == "checked":
            self.checked = event["hyperparameters"]
        elif kind == "error":
            named = {name: event.get(name) for name in ("code", "message", "param")}
            self.error = {**named, "code": named["code"] or "training_failed"}
        elif kind == "crashed":
            number = self._job.attempts
            return [Told(f"crash-{number}-{at}", str(event["message"]), "warn", at=at)]
        elif kind == "training":
            self._total = int(event["steps"])
        elif kind == "step":
            return [self._step(int(step or 0), event, at)]
        elif kind == "validation":
            return [self._validation(int(step or 0), event, at)]
        return []

    def _step(self, step: int, event: dict[str, Any], at: float | None) -> Told:
        self._seconds.append(float(event["seconds"]))
        found = self._metrics.setdefault(step, {"step": step})
        found |= {
            "train_loss": event["loss"],
            "train_mean_token_accuracy": event.get("accuracy"),
        }
        text = f"Step {step}/{self._total}: training loss={event['loss']:.2f}"
        data = {**found, "total_steps": self._total}
        return Told(f"step-{step}", text, data=data, at=at)

    def _validation(self, step: int, event: dict[str, Any], at: float | None) -> Told:
        accuracy = event["metrics"].get("accuracy")
        found = self._metrics.setdefault(step, {"step": step})
        # All validation rows are read each time, so one number is both.
        for prefix in ("", "full_"):
            found |= {
                f"{prefix}valid_loss": event["loss"],
                f"{prefix}valid_mean_token_accuracy": accuracy,
            }
        text = f"Step {step}/{self._total}: full validation loss={event['loss']:.2f}"
        data = {**found, "total_steps": self._total}
        return Told(f"validation-{step}", text, data=data, at=at)

    def _checkpoint(self, step: int) -> None:
        made = self._registered(
            f"{self._name}:ckpt-step-{step}", self._folder.path / "adapters" / f"step-{step}"
        )
        metrics = self._metrics.get(step, {"step": step})
        self._store.leases.saved(self._job, self._worker, step, metrics, made)

    @property
    def _name(self) -> str:
        suffix = re.sub(r"[^a-z0-9_-]+", "-", (self._job.suffix or "").lower()).strip("-")
        own = self._job.id.removeprefix("ftjob-")[:8]
        return f"ft:{self._base.name}:{self._organization}:{suffix}:{own}"

    @property
    def _base(self) -> ModelSpec:
        if self._model is None:
            self._model = fetch.resolve(self._job.base)
        return self._model

    def _registered(self, name: str, adapter: Path) -> RegisteredModel:
        base = self._base
        return RegisteredModel(
            name,
            base.name,
            base.weights_hash,
            str(base.folder),
            str(adapter),
            None,
            time.time(),
            self._job.project,
            self._job.id,
        )


def _when(event: dict[str, Any]) -> float | None:
    at = event.get("at")
    return datetime.fromisoformat(at).timestamp() if at else None
