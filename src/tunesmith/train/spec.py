"""What a training process is told, as a file: everything, so that a run can be made again."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class TrainSpec:
    """One training run; no value is left to be chosen.

    Attributes:
        model: folder of the base; name, revision and weights_hash say which it is; the note goes into
            the adapter's card.
        train, validation: files as data.split.write_jsonl writes them.
        out: the run's folder; checkpoints/ and adapter/ are made in it.
        method: what rows are: a name of train.methods.METHODS.
        extra: a file of rows that are trained as well and are not the user's; "" for none.
        heldout: a file of documents whose likelihood is taken before and after; "" for none.
        full: all weights are trained, and rank to targets mean nothing.
        embeddings: so are the embeddings and the head, whatever else is.
        modules_to_save: these as well, by the ends of their paths.
        processes: how many were started to train as one; see train.ranks.
        sharding: `none`, each of them holds the whole model; `full`, its part; see train.sharded.
        snapshots: the adapter of each checkpoint is kept in adapters/step-N.
        parent: process id that this one dies with; 0 for none.
    """

    model: str
    name: str
    revision: str
    weights_hash: str
    train: str
    validation: str
    out: str
    method: str = "sft"
    heldout: str = ""
    extra: str = ""
    dtype: str = "auto"
    device: str = "auto"
    full: bool = False
    embeddings: bool = False
    modules_to_save: tuple[str, ...] = ()
    rank: int = 16
    alpha: float = 32.0
    rslora: bool = False
    dora: bool = False
    dropout: float = 0.0
    targets: tuple[str, ...] | str = "all-linear"
    epochs: float = 3.0
    batch_rows: int = 16
    learning_rate: float = 1e-3
    warmup: float = 0.1
    weight_decay: float = 0.0
    clip: float = 1.0
    patience: int = 3
    save_every: int = 20
    max_batch_tokens: int = 2048
    share: bool = True
    activation_checkpointing: bool = False
    seed: int = 0
    note: str = ""
    processes: int = 1
    sharding: str = "none"
    snapshots: bool = False
    parent: int = 0

    def write(self, path: Path) -> None:
        """Save as JSON."""
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> TrainSpec:
        """The inverse of `write`."""
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for key in ("targets", "modules_to_save"):
            if isinstance(values.get(key), list):
                values[key] = tuple(values[key])
        return cls(**values)


def steps(rows: int, batch_rows: int, epochs: float) -> int:
    """Optimiser steps of a run; the last batch of an epoch may be short."""
    return math.ceil(math.ceil(rows / batch_rows) * epochs)
