"""A training run small enough to be made in a test: 22 uneven rows, a tiny model, its spec."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunesmith.chat import Message
from tunesmith.data.examples import Conversation, Source
from tunesmith.data.split import write_jsonl
from tunesmith.train.spec import TrainSpec


def conversation(row: int) -> Conversation:
    """A row whose answer follows from its question; lengths differ by a factor of ten."""
    question = f"Parcel {row} " + "please " * (row * row % 11)
    answer = "yes" if row % 2 else "no, " + "sorry " * (row % 7)
    turns = (
        Message("system", "You answer for a parcel desk, in few words."),
        Message("user", question),
        Message("assistant", answer),
    )
    return Conversation(turns, Source("rows.jsonl", row + 1))


@pytest.fixture(scope="session")
def rows() -> Callable[[int], list[Conversation]]:
    """The first rows of the made-up data."""
    return lambda count: [conversation(row) for row in range(count)]


@pytest.fixture(scope="session")
def spec_of(
    tiny: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
    rows: Callable[[int], list[Conversation]],
) -> Callable[..., TrainSpec]:
    """The spec of a run of eight steps in a folder, settings over it."""
    folder = tmp_path_factory.mktemp("rows")
    made = rows(26)
    write_jsonl(made[:22], folder / "train.jsonl")
    write_jsonl(made[22:], folder / "validation.jsonl")

    def make(out: Path, **settings: Any) -> TrainSpec:
        out.mkdir(parents=True, exist_ok=True)
        values: dict[str, Any] = {
            "model": str(tiny()),
            "name": "tiny",
            "revision": "r1",
            "weights_hash": "h1",
            "train": str(folder / "train.jsonl"),
            "validation": str(folder / "validation.jsonl"),
            "out": str(out),
            "dtype": "float32",
            "rank": 4,
            "epochs": 2.0,
            "batch_rows": 6,
            "learning_rate": 3e-3,
            "save_every": 2,
            "max_batch_tokens": 300,
            "patience": 0,
        }
        return TrainSpec(**{**values, **settings})

    return make
