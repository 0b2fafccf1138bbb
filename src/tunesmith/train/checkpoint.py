"""Checkpoints: whole or not there. A folder is written beside its place and renamed into it."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


def save(folder: Path, step: int, state: Mapping[str, Any]) -> None:
    """Write checkpoints/step-N; what a full disk or a kill leaves behind is never read."""
    scratch = folder / f".step-{step}.partial"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    # Through memory: torch's writer hides a full disk behind an error of its own.
    content = io.BytesIO()
    torch.save(dict(state), content)
    try:
        with (scratch / "state.pt").open("wb") as file:
            file.write(content.getbuffer())
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    place(scratch, folder / f"step-{step}")


def place(scratch: Path, target: Path) -> None:
    """Rename a finished folder into its place, over what is there."""
    if target.exists():
        shutil.rmtree(target)
    scratch.rename(target)
    descriptor = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def steps(folder: Path) -> list[int]:
    """Steps of the checkpoints that are there, ascending."""
    return sorted(
        int(path.name.removeprefix("step-"))
        for path in folder.glob("step-*")
        if (path / "state.pt").is_file()
    )


def load(folder: Path, step: int) -> dict[str, Any]:
    """The state of one checkpoint, on the CPU; tensors only, no code is ever unpickled."""
    return torch.load(folder / f"step-{step}" / "state.pt", map_location="cpu", weights_only=True)


def prune(folder: Path, *, best: int) -> None:
    """Keep the newest two and the best."""
    for step in steps(folder)[:-2]:
        if step != best:
            shutil.rmtree(folder / f"step-{step}")
