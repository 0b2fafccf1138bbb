"""The training process: `python -m tunesmith.train spec.json`.

A spec goes in, events come out as JSON lines on standard output. It dies with its parent and
holds a lock on the run's folder. Exit codes: 0 done, 1 failed, 130 interrupted.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tunesmith.errors import TrainingError, TunesmithError
from tunesmith.models.lifetime import die_with_parent
from tunesmith.train.spec import TrainSpec


def emit(event: dict[str, Any]) -> None:
    """One event, one line."""
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def run(path: Path) -> None:
    """Train as the spec in this file says, alone in its folder.

    Raises:
        TrainingError: another process trains in this folder, or the disk is full.
    """
    spec = TrainSpec.read(path)
    if spec.parent and "TORCHELASTIC_RUN_ID" not in os.environ:
        die_with_parent(spec.parent)
    lock = FileLock(Path(spec.out) / ".lock", timeout=5)
    try:
        # Of several processes that train as one, the first holds it for all.
        if os.environ.get("RANK", "0") == "0":
            lock.acquire()
    except Timeout:
        raise TrainingError(
            f"another process is training in {spec.out}",
            expected="a folder of its own for each run",
            remedy="Wait for it, stop it, or give another --out.",
        ) from None
    # torch and transformers take seconds to import; a spec that is refused should not wait.
    from tunesmith.train.board import watched
    from tunesmith.train.fit import fit

    try:
        fit(spec, watched(emit, Path(spec.out)))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise TrainingError(
            f"the disk is full ({spec.out})",
            expected="room for a checkpoint",
            remedy="Make room and type the same command: it goes on from the last checkpoint.",
        ) from None


def main() -> int:
    """The process edge: every end is an event and an exit code."""
    try:
        run(Path(sys.argv[1]))
    except TunesmithError as error:
        emit({"type": "error", "message": str(error)})
        return 1
    except KeyboardInterrupt:
        emit({"type": "interrupted"})
        return 130
    except Exception as error:  # noqa: BLE001 - the process edge: any end has to become an event
        emit({"type": "error", "message": f"{type(error).__name__}: {error}"})
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
