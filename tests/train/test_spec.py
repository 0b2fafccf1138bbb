from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest

from tunesmith.train.spec import TrainSpec, steps


@pytest.mark.parametrize("targets", ["all-linear", ("q_proj", "v_proj")])
def test_a_spec_is_read_as_it_was_written(
    tmp_path: Path, spec_of: Callable[..., TrainSpec], targets: object
) -> None:
    spec = spec_of(tmp_path, targets=targets, learning_rate=1.3e-3)
    spec.write(tmp_path / "spec.json")
    assert TrainSpec.read(tmp_path / "spec.json") == spec


def test_trap_35_the_trainer_has_no_place_for_the_test_split() -> None:
    named = {field.name for field in fields(TrainSpec)}
    assert {"train", "validation"} <= named
    assert not any("test" in name for name in named)


@pytest.mark.parametrize(
    ("rows", "batch_rows", "epochs", "wanted"),
    [(22, 6, 2.0, 8), (24, 6, 2.0, 8), (6, 6, 1.0, 1), (100, 10, 0.25, 3), (1, 32, 3.0, 3)],
)
def test_steps_by_hand(rows: int, batch_rows: int, epochs: float, wanted: int) -> None:
    assert steps(rows, batch_rows, epochs) == wanted
