"""A few real steps of a training run, timed: `python -m tunesmith.train.dryrun spec.json`.

The process starts as the trainer does, takes steps of different sizes from the run's own schedule,
a part of a validation pass, a checkpoint and the ending, and writes no adapter. One JSON value goes
to standard output; `cost.forecast` reads it.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from tunesmith.data.split import read_jsonl
from tunesmith.models.load import LoadedModel
from tunesmith.models.template import Chain
from tunesmith.models.tree import PackedBatch
from tunesmith.train import checkpoint, heldout, methods, objectives
from tunesmith.train.fit import Rows, rows_of_step, trainer_of
from tunesmith.train.pack import pack
from tunesmith.train.parity import record
from tunesmith.train.spec import TrainSpec, steps
from tunesmith.train.trainer import Trainer

STEPS = 6
"""Steps that are timed, from the smallest to the largest."""
LOOKED_AT = 64
"""Steps of the schedule whose tokens are counted; the others are taken to be like them."""
VALIDATION_BATCHES = 3
MOST_SECONDS = 60.0
"""No further step is begun after that, once three are timed."""


def dry_run(spec: TrainSpec) -> dict[str, Any]:
    """What a run costs in parts; seconds are wall seconds, CPU seconds those of all threads.

    Returns:
        {"startup", "validation", "ending": {"seconds", "cpu_seconds"}, "steps": [{"tokens",
        "seconds", "cpu_seconds"}], "schedule": {"steps", "tokens", "validations"}, "memory_mb",
        "parameters", "learned"}; tokens are distinct ones.
    """
    trainer = trainer_of(spec)
    model, share = trainer.model, spec.share and trainer.model.shares
    rows_of = methods.METHODS[spec.method]
    train = rows_of(read_jsonl(Path(spec.train)), model.template)
    held = rows_of(read_jsonl(Path(spec.validation)), model.template)
    began = psutil.Process().create_time()
    startup = {"seconds": time.time() - began, "cpu_seconds": time.process_time()}

    def packed(rows: Rows) -> list[PackedBatch]:
        chains: list[Chain] = [chain for row in rows for chain in row]
        return pack(chains, max_tokens=spec.max_batch_tokens, share=share)

    def step(rows: Rows) -> None:
        for batch in packed(rows):
            trainer.forward_backward(batch, objectives.sft)
        # A rate of 0 moves nothing and takes as long.
        trainer.optim_step(0.0, clip=spec.clip)
        if model.device.type == "cuda":
            torch.cuda.synchronize()

    total = steps(len(train), spec.batch_rows, spec.epochs)
    numbers = np.linspace(0, total - 1, min(total, LOOKED_AT)).astype(int)
    drawn = [rows_of_step(int(n), len(train), spec.batch_rows, spec.seed) for n in numbers]
    schedule = [[train[row] for row in step_rows] for step_rows in drawn]
    sizes = [_tokens(packed(rows)) for rows in schedule]
    order = sorted(range(len(sizes)), key=lambda n: sizes[n])
    chosen = [order[int(n)] for n in np.linspace(0, len(order) - 1, STEPS)]
    step(schedule[chosen[-1]])
    return {
        "startup": startup,
        "steps": _steps([(sizes[n], lambda n=n: step(schedule[n])) for n in chosen]),
        "validation": _validation(trainer, packed(held)),
        "ending": _ending(model, held or train, spec.heldout),
        "schedule": {
            "steps": total,
            "tokens": sum(sizes) / len(sizes) * total,
            "validations": 1 + math.ceil(total / spec.save_every),
        },
        "memory_mb": _memory(),
        "parameters": sum(weight.numel() for weight in model.module.parameters()),
        "learned": sum(weight.numel() for weight in trainer.weights),
    }


def _steps(chosen: Sequence[tuple[int, Callable[[], None]]]) -> list[dict[str, float]]:
    """Steps across the sizes, timed in an order that is not that of their sizes."""
    began, timed = time.monotonic(), list[dict[str, float]]()
    for tokens, step in (*chosen[::2], *chosen[-1::-2]):
        if len(timed) >= 3 and time.monotonic() - began > MOST_SECONDS:
            break
        timed.append({"tokens": tokens, **_timed(step)})
    return timed


def _validation(trainer: Trainer, batches: list[PackedBatch]) -> dict[str, float]:
    """One pass over the held-out rows, from some of its batches, and the checkpoint after it."""
    with tempfile.TemporaryDirectory(prefix="tunesmith-dry-run-") as place:
        state = {"trainer": trainer.state(), "progress": {}}
        spent = _timed(lambda: checkpoint.save(Path(place), 1, state))
    if not batches:
        return spent
    some = [batches[int(n)] for n in np.linspace(0, len(batches) - 1, VALIDATION_BATCHES)]
    some = some[: len(batches)]
    times = _tokens(batches) / _tokens(some)
    passed = _timed(lambda: trainer.validate(some, objectives.sft))
    return {name: spent[name] + seconds * times for name, seconds in passed.items()}


def _ending(model: LoadedModel, rows: Rows, texts: str) -> dict[str, float]:
    """What the trainer says of some answers, and held-out text before and after."""
    spent = _timed(lambda: record(model, rows, None))
    if not texts:
        return spent
    known = _timed(lambda: heldout.measure(model, Path(texts), None, "base"))
    return {name: seconds + 2 * known[name] for name, seconds in spent.items()}


def _tokens(batches: Sequence[PackedBatch]) -> int:
    return sum(batch.size for batch in batches)


def _timed(work: Callable[[], object]) -> dict[str, float]:
    began, before = time.perf_counter(), time.process_time()
    work()
    return {
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - before,
    }


def _memory() -> int:
    """Megabytes that this process holds now, or held at most on a device."""
    held = psutil.Process().memory_info().rss
    if torch.cuda.is_available():
        held = torch.cuda.max_memory_allocated()
    return int(held // 2**20)


def main() -> None:
    """Read a spec, print what its run would cost."""
    found = dry_run(TrainSpec.read(Path(sys.argv[1])))
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
