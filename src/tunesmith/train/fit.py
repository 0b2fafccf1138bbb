"""The loop: order, step, validate, checkpoint, stop early, keep the best."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from tunesmith.data.split import read_jsonl
from tunesmith.models import terms
from tunesmith.models.load import load
from tunesmith.models.lora import LoRASettings
from tunesmith.models.template import Chain
from tunesmith.models.tree import PackedBatch
from tunesmith.train import checkpoint, heldout, methods, objectives
from tunesmith.train.pack import pack
from tunesmith.train.parity import record
from tunesmith.train.ranks import Ranks
from tunesmith.train.sharded import Sharded
from tunesmith.train.spec import TrainSpec, steps
from tunesmith.train.trainer import FullSettings, Trainer

Emit = Callable[[dict[str, Any]], None]
Rows = Sequence[tuple[Chain, ...]]
RANKS: Mapping[str, type[Ranks]] = {"none": Ranks, "full": Sharded}
"""Who holds the weights, by train.sharding."""


@dataclass(slots=True)
class Progress:
    """Where a run stands; saved with each checkpoint."""

    step: int = 0
    best_step: int = 0
    best_loss: float = math.inf
    worse: int = 0
    """Validations since the best one."""
    stopped: bool = False


def fit(spec: TrainSpec, emit: Emit) -> None:
    """Train as the spec says, from the newest checkpoint if there is one, and write adapter/ or
    model/.

    Raises:
        TrainingError: a gradient is not finite.
    """
    ranks = RANKS[spec.sharding].join()
    try:
        _fit(spec, emit if ranks.first else _unheard, ranks)
    finally:
        ranks.leave()


def _unheard(event: dict[str, Any]) -> None:
    """What the first process says is enough."""


def _fit(spec: TrainSpec, emit: Emit, ranks: Ranks) -> None:
    out = Path(spec.out)
    trainer = trainer_of(spec, ranks)
    model = trainer.model
    spec = replace(spec, share=spec.share and model.shares)
    rows_of = methods.METHODS[spec.method]
    train = rows_of(read_jsonl(Path(spec.train)), model.template)
    if spec.extra:
        train += rows_of(read_jsonl(Path(spec.extra)), model.template)
    held = rows_of(read_jsonl(Path(spec.validation)), model.template)
    total = steps(len(train), spec.batch_rows, spec.epochs)
    emit(
        {
            "type": "training",
            "rows": len(train),
            "steps": total,
            "share": spec.share,
            "reason": model.why,
            "processes": ranks.size,
            "parameters": sum(weight.numel() for weight in trainer.weights),
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": str(model.device),
        }
    )
    validation = pack(_flat(held), max_tokens=spec.max_batch_tokens, share=spec.share)
    own = ranks.even(ranks.own(validation))
    loop = _Loop(spec, trainer, train, own, total, emit, measured=bool(validation))
    resumed = _resume(out / "checkpoints", trainer, emit)
    writes = out if ranks.first else None
    if resumed is None and spec.heldout and (ranks.first or ranks.together):
        heldout.measure(model, Path(spec.heldout), writes, "base")
    progress = loop.run(resumed)
    if not (ranks.first or ranks.together):
        return
    if progress.best_step != progress.step:
        best = checkpoint.load(out / "checkpoints", progress.best_step)
        trainer.restore(best["trainer"])
    if spec.heldout:
        heldout.measure(model, Path(spec.heldout), writes, "tuned")
    _write(spec, trainer, progress.best_step, out / ("model" if spec.full else "adapter"))
    record(model, held or train, out / "parity.json" if ranks.first else None)
    emit(
        {
            "type": "trained",
            "step": progress.step,
            "best_step": progress.best_step,
            "stopped_early": progress.stopped,
            "validation_loss": None if math.isinf(progress.best_loss) else progress.best_loss,
        }
    )


def trainer_of(spec: TrainSpec, ranks: Ranks | None = None) -> Trainer:
    """The base and what is to be trained of it or beside it, as the spec wants them."""
    model = load(Path(spec.model), dtype=spec.dtype, device=spec.device)  # pyright: ignore[reportArgumentType]
    if spec.activation_checkpointing:
        model.recompute()
    if spec.full:
        settings = FullSettings(spec.embeddings)
    else:
        whole = spec.modules_to_save
        whole += model.adapters.embeddings if spec.embeddings else ()
        settings = LoRASettings(
            spec.rank, spec.alpha, spec.rslora, spec.dropout, spec.targets, spec.dora, whole
        )
    return Trainer(model, settings, seed=spec.seed, weight_decay=spec.weight_decay, ranks=ranks)


def learning_rate(step: int, total: int, peak: float, warmup: float) -> float:
    """The rate of step 0 .. total-1: a linear rise over the first share, then a cosine to 0."""
    rise = math.ceil(total * warmup)
    if step < rise:
        return peak * (step + 1) / rise
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, total - rise)))


def rows_of_step(step: int, rows: int, batch_rows: int, seed: int) -> list[int]:
    """Which rows a step learns from: a function of the seed and nothing else."""
    per_epoch = math.ceil(rows / batch_rows)
    epoch, place = divmod(step, per_epoch)
    order = np.random.default_rng([seed, epoch]).permutation(rows)
    return [int(row) for row in order[place * batch_rows : (place + 1) * batch_rows]]


def _draws(seed: int, step: int, rank: int) -> int:
    """The seed of a step's random draws (dropout) in one process."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0])


@dataclass(slots=True)
class _Loop:
    spec: TrainSpec
    trainer: Trainer
    train: Rows
    validation: list[PackedBatch]
    total: int
    emit: Emit
    measured: bool
    """Whether there are held-out rows; a process may have none of them."""

    def run(self, resumed: Progress | None) -> Progress:
        progress = resumed or Progress()
        if resumed is None:
            self._validate(progress)
        while progress.step < self.total and not progress.stopped:
            self._step(progress)
            if progress.step % self.spec.save_every == 0 or progress.step == self.total:
                self._validate(progress)
        return progress

    def _step(self, progress: Progress) -> None:
        spec, ranks, began = self.spec, self.trainer.ranks, time.monotonic()
        # Of the step and not of what was drawn before: a run that goes on draws the same.
        torch.manual_seed(_draws(spec.seed, progress.step, ranks.rank))
        rows = rows_of_step(progress.step, len(self.train), spec.batch_rows, spec.seed)
        chains = _flat([self.train[row] for row in ranks.own(rows)])
        batches = pack(chains, max_tokens=spec.max_batch_tokens, share=spec.share)
        losses = [
            self.trainer.forward_backward(batch, objectives.sft) for batch in ranks.even(batches)
        ]
        rate = learning_rate(progress.step, self.total, spec.learning_rate, spec.warmup)
        norm = self.trainer.optim_step(rate, clip=spec.clip)
        progress.step += 1
        total, count, hits, tokens, distinct, trained = ranks.total(
            [
                float(sum(part.sum for part in losses)),
                sum(part.count for part in losses),
                sum(part.hits for part in losses),
                sum(len(chain.ids) for chain in chains),
                sum(batch.size for batch in batches),
                sum(chain.trained_count for chain in chains),
            ]
        )
        self.emit(
            {
                "type": "step",
                "step": progress.step,
                "loss": total / count,
                "accuracy": hits / count,
                "lr": rate,
                "rows": len(rows),
                "tokens": int(tokens),
                "distinct_tokens": int(distinct),
                "trained_tokens": int(trained),
                "grad_norm": norm,
                "memory_mb": _memory(),
                "seconds": time.monotonic() - began,
            }
        )

    def _validate(self, progress: Progress) -> None:
        """Measure, then save: a checkpoint knows whether it is the best."""
        loss = math.inf
        if self.measured:
            loss, accuracy = self.trainer.validate(self.validation, objectives.sft)
            metrics = {"accuracy": accuracy}
            self.emit(
                {"type": "validation", "step": progress.step, "loss": loss, "metrics": metrics}
            )
        # Without held-out rows the newest is the best there is. Step 0 is the base: measured, never
        # kept, so that a run which only makes it worse ends in a verdict and not in a silent adapter.
        if progress.step == 0:
            pass
        elif loss < progress.best_loss or not self.measured:
            progress.best_loss, progress.best_step, progress.worse = loss, progress.step, 0
        else:
            progress.worse += 1
        patience = self.spec.patience
        progress.stopped = bool(patience and progress.worse >= patience)
        out = Path(self.spec.out)
        if self.spec.snapshots and not self.spec.full:
            # First: a run that goes on from a checkpoint finds its adapter written.
            _write(
                self.spec, self.trainer, progress.step, out / "adapters" / f"step-{progress.step}"
            )
        folder = out / "checkpoints"
        state = {"trainer": self.trainer.state(), "progress": asdict(progress)}
        if self.trainer.ranks.first:
            checkpoint.save(folder, progress.step, state)
            checkpoint.prune(folder, best=progress.best_step)
        self.emit({"type": "checkpoint", "step": progress.step, "best": progress.best_step})


def _resume(folder: Path, trainer: Trainer, emit: Emit) -> Progress | None:
    saved = checkpoint.steps(folder)
    if not saved:
        return None
    state = checkpoint.load(folder, saved[-1])
    trainer.restore(state["trainer"])
    emit({"type": "resumed", "step": saved[-1]})
    return Progress(**state["progress"])


def _write(spec: TrainSpec, trainer: Trainer, step: int, target: Path) -> None:
    """The adapter as it is at a step, or all weights, with a card."""
    scratch = target.with_name(f".{target.name}.partial")
    if trainer.ranks.first:
        # What a kill left behind.
        shutil.rmtree(scratch, ignore_errors=True)
    held = "nf4" if spec.dtype == "nf4" else str(trainer.model.dtype).removeprefix("torch.")
    card = {
        "base": spec.name,
        "base_revision": spec.revision,
        "base_weights": spec.weights_hash,
        "base_note": spec.note,
        "template": trainer.model.template.fingerprint,
        "held_in": held,
        "precision": held if spec.full else "float32 masters",
        "step": step,
        **(terms.carry(Path(spec.model), scratch) if trainer.ranks.first else {}),
    }
    trainer.save(scratch, base=spec.name, card=card)
    if trainer.ranks.first:
        checkpoint.place(scratch, target)


def _flat(rows: Rows) -> list[Chain]:
    return [chain for row in rows for chain in row]


def _memory() -> int:
    """Resident memory of this process in MB, and what it holds on the device."""
    held = psutil.Process().memory_info().rss
    if torch.cuda.is_available():
        held = torch.cuda.max_memory_allocated()
    return int(held // 2**20)
