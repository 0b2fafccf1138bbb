"""The training process, from outside: started, listened to, ended."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO

import psutil

from tunesmith import recipe as recipes
from tunesmith.errors import DiskFull, FolderBusy, TrainerCrashed, TrainingError
from tunesmith.models.catalog import ModelSpec
from tunesmith.models.lifetime import environment
from tunesmith.pipeline import extra
from tunesmith.pipeline.folder import Event, RunFolder
from tunesmith.recipe import Recipe
from tunesmith.train.lock import hold
from tunesmith.train.spec import TrainSpec


def spec_of(recipe: Recipe, model: ModelSpec, folder: RunFolder) -> TrainSpec:
    """What the training process is told; the recipe holds numbers by now."""
    method, train = recipe.method, recipe.train
    tested = folder.data / "test.jsonl"
    if not tested.is_file() or not tested.stat().st_size:
        tested = folder.data / "validation.jsonl"
    return TrainSpec(
        model=str(model.folder),
        name=model.name,
        revision=model.revision,
        weights_hash=model.weights_hash,
        note=model.note,
        train=str(folder.data / "train.jsonl"),
        validation=str(folder.data / "validation.jsonl"),
        out=str(folder.path),
        method=method.type,
        heldout=str(tested) if method.type == "cpt" else "",
        extra=str(folder.data / extra.FILE) if train.replay or train.canaries else "",
        dtype=recipe.model.dtype,
        full=method.adapter == "full",
        embeddings=method.embeddings is True,
        modules_to_save=method.modules_to_save,
        rank=0 if method.adapter == "full" else int(method.rank),
        alpha=method.alpha,
        rslora=method.rslora,
        dora=method.adapter == "dora",
        dropout=method.dropout,
        targets=method.targets,
        epochs=float(train.epochs),
        batch_rows=int(train.batch_rows),
        learning_rate=float(train.learning_rate),
        warmup=train.warmup,
        weight_decay=train.weight_decay,
        clip=train.clip,
        patience=train.patience,
        save_every=int(train.save_every),
        max_batch_tokens=int(train.max_batch_tokens),
        share=train.share,
        activation_checkpointing=train.activation_checkpointing,
        seed=train.seed,
        processes=train.processes,
        sharding=train.sharding,
        parent=os.getpid(),
    )


def trained(folder: RunFolder) -> bool:
    """Whether training has ended with an adapter or a model."""
    ended = any(event["type"] == "trained" for event in folder.events())
    return ended and folder.tuned is not None


def train(
    recipe: Recipe,
    model: ModelSpec,
    folder: RunFolder,
    happened: Callable[[Event], None],
    *,
    snapshots: bool = False,
) -> Recipe:
    """Train as a recipe without any `auto` says, unless that has ended.

    Args:
        snapshots: keep the adapter of each checkpoint.

    Returns:
        The recipe with the dtype that the trainer chose, as the folder has it now.

    Raises:
        TrainingError: see `learn`.
    """
    if trained(folder):
        return recipe

    def told(event: Event) -> None:
        nonlocal recipe
        if event["type"] == "training" and recipe.model.dtype == "auto":
            recipe = recipes.with_values(recipe, {"model.dtype": event["dtype"]})
            folder.write(folder.recipe.name, recipes.dump(recipe))
        happened(event)

    extra.write(recipe, model, folder)
    with _counted(folder):
        learn(replace(spec_of(recipe, model, folder), snapshots=snapshots), folder, told)
    return recipe


@contextmanager
def _counted(folder: RunFolder) -> Generator[None]:
    """Write what an attempt at training took: wall seconds, and CPU seconds of its processes."""
    began, before = time.monotonic(), psutil.Process().cpu_times()
    try:
        yield
    finally:
        after = psutil.Process().cpu_times()
        cpu = after.children_user + after.children_system
        cpu -= before.children_user + before.children_system
        seconds = time.monotonic() - began
        folder.emit({"type": "spent", "seconds": seconds, "cpu_seconds": cpu})


def learn(spec: TrainSpec, folder: RunFolder, happened: Callable[[Event], None]) -> None:
    """Run a training process to its end; its events go to the folder and to `happened`.

    Raises:
        TrainingError: it failed; the message is its own.
        FolderBusy: somebody else trains in the folder.
        TrainerCrashed: it ended without a word.
        KeyboardInterrupt: the user stopped it; it ends first.
    """
    agree(folder)
    path = folder.path / "train.json"
    spec.write(path)
    log = folder.path / "train.log"
    failed: Event | None = None
    with log.open("ab") as errors, ExitStack() as ending:
        processes = [
            ending.enter_context(_process(path, errors, place)) for place in _places(spec.processes)
        ]
        first = processes[0]
        assert first.stdout is not None
        try:
            for line in first.stdout:
                if not line.endswith("\n"):
                    # Cut by a kill.
                    break
                event = folder.emit(json.loads(line))
                if event["type"] == "error":
                    failed = event
                happened(event)
        except KeyboardInterrupt:
            for process in processes:
                process.send_signal(signal.SIGINT)
            first.wait(timeout=30)
            raise
        except BaseException:
            # Nothing is lost, as checkpoints are whole at any moment, and nobody waits for a step.
            first.kill()
            raise
        finally:
            # Whoever still writes ends on a closed pipe; without the first one the others wait for ever.
            first.stdout.close()
            first.wait()
            for process in processes[1:]:
                process.terminate()
    if first.returncode != 0:
        raise _failure(failed, log, first)


def _places(processes: int) -> list[dict[str, str]]:
    """What torchrun would tell each of the processes; nothing where there is one."""
    if processes == 1:
        return [{}]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    threads = max(1, (os.cpu_count() or 1) // processes)
    common = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(processes),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
    }
    return [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


def _process(path: Path, errors: IO[bytes], place: dict[str, str]) -> subprocess.Popen[str]:
    """A training process; only the first one of several is listened to."""
    heard = place.get("RANK", "0") == "0"
    return subprocess.Popen(
        [sys.executable, "-m", "tunesmith.train", str(path)],
        stdout=subprocess.PIPE if heard else subprocess.DEVNULL,
        stderr=errors,
        env=environment() | place,
        start_new_session=True,
        text=True,
        encoding="utf-8",
    )


def agree(folder: RunFolder) -> None:
    """After a kill the newest checkpoint may be one that the log does not tell of: go back to one
    that both have, so that no step is missing from the log or in it twice.

    Raises:
        FolderBusy: somebody else trains in the folder.
    """
    with hold(folder.path):
        told = [event["step"] for event in folder.events() if event["type"] == "checkpoint"]
        for path in (folder.path / "checkpoints").glob("step-*"):
            if int(path.name.removeprefix("step-")) not in told:
                shutil.rmtree(path)
        folder.forget_after(max(told, default=-1))


def _failure(said: Event | None, log: Path, process: subprocess.Popen[str]) -> TrainingError:
    if said is None:
        return TrainerCrashed(f"the training process ended with {_last(log, process)}")
    kinds = {kind.code: kind for kind in (DiskFull, FolderBusy)}
    return kinds.get(said["code"], TrainingError)(said["message"])


def _last(log: Path, process: subprocess.Popen[str]) -> str:
    tail = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:]
    return f"exit code {process.returncode}; the end of {log}: {' | '.join(tail)}"
