"""TensorBoard events beside the log, where the package is there."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

Emit = Callable[[dict[str, Any]], None]
STEP_VALUES = ("loss", "accuracy", "lr", "grad_norm", "memory_mb")


def watched(emit: Emit, folder: Path) -> Emit:
    """`emit`, which also writes losses, rate, gradient norm and memory to folder/tensorboard."""
    if importlib.util.find_spec("tensorboard") is None:
        return emit
    # Half a second to import, for those who have it.
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder / "tensorboard"))

    def both(event: dict[str, Any]) -> None:
        emit(event)
        if event["type"] == "step":
            for name in STEP_VALUES:
                writer.add_scalar(f"train/{name}", event[name], event["step"])
        elif event["type"] == "validation":
            writer.add_scalar("validation/loss", event["loss"], event["step"])
            writer.flush()

    return both
