"""A fine-tuning job, one step at a time: `python -m tunesmith.pipeline.job spec.json`.

A spec goes in, events come out as JSON lines on standard output. It dies with its parent, and takes
the trainer along. Exit codes: 0 done, 1 failed (the last event is an "error"), 75 ended by force (may
be started again, and goes on from the newest checkpoint), 130 interrupted.

Whoever was killed before it had stored an event is told it again: each attempt begins with what the
folder's log holds. A message is known by its key, any other event by its type and step.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

from pydantic import BaseModel, ConfigDict, Field

from tunesmith import recipe as recipes
from tunesmith.checks.report import Report
from tunesmith.errors import (
    DataError,
    DiskFull,
    FileRefused,
    FolderBusy,
    TrainerCrashed,
    TrainingError,
    TunesmithError,
    UsageError,
)
from tunesmith.models import fetch
from tunesmith.models.lifetime import die_with_parent
from tunesmith.models.template import ChatTemplate
from tunesmith.pipeline import learn, machine, prepare, uploaded
from tunesmith.pipeline.begin import begin
from tunesmith.pipeline.folder import Event, RunFolder
from tunesmith.pipeline.prepare import Prepared
from tunesmith.pipeline.uploaded import Upload
from tunesmith.recipe import Recipe
from tunesmith.train.spec import steps

AGAIN, STOPPED = 75, 130
TOLD = frozenset({"training", "resumed", "step", "validation", "checkpoint", "trained"})
"""Events of the trainer that are passed on."""
LEVELS = {"error": "error", "warning": "warn"}
"""Findings that are told, and how."""


class _Border(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileSpec(_Border):
    """An uploaded file by its owner's names."""

    id: str
    filename: str


class FileSpecs(_Border):
    """The files of a job."""

    training: FileSpec
    validation: FileSpec | None = None


class Spec(_Border):
    """One step of a job.

    `recipe` names the paths of the files; `parent` is the process that this one dies with, 0 for
    none.
    """

    step: Literal["check", "train"]
    folder: Path
    parent: int = 0
    recipe: dict[str, Any]
    learning_rate_multiplier: Literal["auto"] | Annotated[float, Field(gt=0, allow_inf_nan=False)]
    files: FileSpecs

    def uploads(self, recipe: Recipe) -> list[Upload]:
        """The files with their paths, the training file first."""
        (path,), held = recipe.data.files, self.files.validation
        found = [Upload(path, self.files.training.id, self.files.training.filename, "training")]
        if held is not None:
            found.append(Upload(str(recipe.data.validation), held.id, held.filename, "validation"))
        return found


def send(event: Mapping[str, Any]) -> None:
    """One event, one line."""
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def message(level: str, text: str) -> Event:
    """A sentence; the same one has the same key in every attempt."""
    key = hashlib.sha256(f"{level} {text}".encode()).hexdigest()[:16]
    return {"type": "message", "key": key, "level": level, "message": text}


class _Screen:
    """Where a job's data is checked: what is said goes into the log and out."""

    def __init__(self, folder: RunFolder, uploads: list[Upload]) -> None:
        self._folder, self._uploads = folder, uploads

    def tell(self, level: str, text: str) -> None:
        send(self._folder.emit(message(level, text)))

    def say(self, text: str) -> None:
        self.tell("info", text)

    def progress(self, what: str, done: int, total: int | None) -> None:
        """A job has no line that is drawn over."""

    def event(self, event: Event) -> None:
        """Nothing is trained while data is checked."""

    def checked(self, prepared: Prepared, report: Report) -> None:
        """Tell the findings, and refuse the file for the first error."""
        found = [item for item in report.findings if item.severity in LEVELS]
        texts = [
            item.message + (f" ({', '.join(item.rows)})" if item.rows else "") for item in found
        ]
        texts = uploaded.named(texts, self._uploads)
        for item, text in zip(found, texts, strict=True):
            self.tell(LEVELS[item.severity], text)
        if report.errors:
            raise self._uploads[0].refused(texts[0])


def check(spec: Spec) -> None:
    """Check the files as a whole, and write what the run stands on; once, and then tell it again.

    Raises:
        FileRefused: a file that is not to be learned from.
        TunesmithError: the model or the recipe will not do.
    """
    folder = RunFolder(spec.folder)
    log = folder.path / "events.jsonl"
    if not (folder.path / "environment.json").is_file():
        # What an attempt that was killed has said.
        log.unlink(missing_ok=True)
        _check(spec, folder)
    else:
        for event in folder.events():
            if event["type"] == "message":
                send(event)
    send(_checked(spec, folder))


def _check(spec: Spec, folder: RunFolder) -> None:
    recipe = _recipe(spec)
    machine.able(recipe)
    prepare.learnable(recipe)
    uploads = spec.uploads(recipe)
    for upload in uploads:
        uploaded.check_lines(upload)
    screen = _Screen(folder, uploads)
    name, revision = recipe.model.name, recipe.model.revision
    model = fetch.resolve(name, revision=revision, say=screen.say)
    template = ChatTemplate.load(model.folder)
    try:
        prepared = prepare.gather(recipe.reading, template, seed=recipe.train.seed)
    except DataError as error:
        raise uploaded.of_reader(error, uploads) from None
    uploaded.accept(prepared, uploads, screen.tell)
    key = prepare.run_key(recipe, prepared, model, template)
    times = spec.learning_rate_multiplier
    rate = 1.0 if times == "auto" else times
    begin(recipe, folder, model, template, prepared, screen, key, rate=rate)


def _recipe(spec: Spec) -> Recipe:
    """The recipe with what a job means: every example counts, and so does every epoch asked for."""
    recipe = recipes.parse(spec.recipe)
    # Any bad row refuses the file, so nothing is dropped; said so, a refusal names no option.
    values: dict[str, Any] = {"data.duplicates": "keep", "data.too_long": "drop", "data.max_bad": 0}
    if recipe.train.epochs != "auto":
        values["train.patience"] = 0
    return recipes.with_values(recipe, values)


def _checked(spec: Spec, folder: RunFolder) -> Event:
    recipe, ledger = recipes.read(folder.recipe), folder.read_json("ledger.json")
    rows, held = (_rows(folder.data / f"{name}.jsonl") for name in ("train", "validation"))
    epochs, batch = float(recipe.train.epochs), int(recipe.train.batch_rows)
    times = spec.learning_rate_multiplier
    return {
        "type": "checked",
        "rows": rows,
        "validation_rows": held,
        "steps": steps(rows, batch, epochs),
        "tokens": ledger["trained"] + ledger["masked"],
        "trained_tokens": ledger["trained"],
        "hyperparameters": {
            "n_epochs": int(epochs) if epochs.is_integer() else epochs,
            "batch_size": batch,
            "learning_rate_multiplier": 1.0 if times == "auto" else times,
        },
    }


def _rows(path: Path) -> int:
    with path.open("rb") as lines:
        return sum(1 for _ in lines)


def train(spec: Spec) -> None:
    """Train in the folder that `check` has written, to the end.

    Raises:
        TrainingError: see `learn.learn`.
        UsageError: the folder was not checked.
    """
    folder = RunFolder(spec.folder)
    if not (folder.path / "environment.json").is_file():
        raise UsageError("the job's files have not been checked", expected="its step `check` first")
    learn.agree(folder)
    for event in folder.events():
        _pass_on(event)
    recipe = recipes.read(folder.recipe)
    model = fetch.resolve(recipe.model.name, revision=recipe.model.revision)
    learn.train(recipe, model, folder, _pass_on, snapshots=True)
    ended = next(event for event in reversed(folder.events()) if event["type"] == "trained")
    for text in _outcome(ended):
        send(message("info", text))


def _pass_on(event: Event) -> None:
    if event["type"] in TOLD:
        send(event)


def _outcome(ended: Event) -> list[str]:
    """What became of the training, where it may surprise."""
    last, best, loss = ended["step"], ended["best_step"], ended["validation_loss"]
    told: list[str] = []
    if ended["stopped_early"]:
        told.append(f"training stopped early, at step {last}: the validation loss fell no further")
    if loss is not None:
        told.append(
            f"the model is that of step {best} of {last}, whose validation loss is {loss:.4f}"
        )
    return told


STEPS: Mapping[str, Callable[[Spec], None]] = {"check": check, "train": train}


def _end(error: Exception, folder: str) -> tuple[int, Event]:
    """The exit code and the last event of what went wrong."""
    said = str(error).replace(folder, "the job's folder")
    if isinstance(error, FolderBusy | TrainerCrashed):
        return AGAIN, {"type": "crashed", "message": said}
    event: Event = {"type": "error", "code": "server_error", "message": said, "param": None}
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if full or isinstance(error, DiskFull):
        event |= {"code": DiskFull.code, "message": "The disk of this server is full."}
    elif isinstance(error, FileRefused):
        event |= {"code": error.code, "param": error.param}
    elif isinstance(error, TrainingError):
        event |= {"code": error.code}
    elif not isinstance(error, TunesmithError):
        event |= {"message": f"{type(error).__name__}: {said}"}
        traceback.print_exception(error)
    return 1, event


def _stop(number: int, _frame: object) -> NoReturn:
    # Once: what is being ended is not to be interrupted again.
    signal.signal(number, signal.SIG_IGN)
    sys.exit(STOPPED)


def main() -> int:
    """The process edge: every end is an event and an exit code."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    # A job's files are its owner's.
    os.umask(0o077)
    folder = ""
    try:
        spec = Spec.model_validate_json(Path(sys.argv[1]).read_bytes())
        folder = str(spec.folder)
        if spec.parent:
            die_with_parent(spec.parent)
        STEPS[spec.step](spec)
    except SystemExit:
        send({"type": "interrupted"})
        return STOPPED
    except Exception as error:  # noqa: BLE001 - the process edge: any end has to become an event
        code, event = _end(error, folder)
        send(event)
        return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
