from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tunesmith.train.board import watched


def test_losses_are_in_the_tensorboard_folder_and_every_event_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    seen: list[dict[str, Any]] = []
    emit = watched(seen.append, tmp_path)
    step = {
        "type": "step",
        "step": 3,
        "loss": 1.5,
        "lr": 0.1,
        "grad_norm": 2.0,
        "memory_mb": 7,
        "accuracy": 0.5,
    }
    emit(step)
    emit({"type": "validation", "step": 3, "loss": 1.25})
    assert seen == [step, {"type": "validation", "step": 3, "loss": 1.25}]
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert found.Scalars("train/loss")[0].value == 1.5
    assert found.Scalars("train/accuracy")[0].value == 0.5
    assert found.Scalars("validation/loss")[0].step == 3
