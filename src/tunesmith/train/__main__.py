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
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from tunesmith.errors import DiskFull, TrainingError, TunesmithError
from tunesmith.models.lifetime import die_with_parent
from tunesmith.train.lock import hold
from tunesmith.train.spec import TrainSpec


def emit(event: dict[str, Any]) -> None:
    """One event, one line."""
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def run(path: Path) -> None:
    """Train as the spec in this file says, alone in its folder.

    Raises:
        FolderBusy: another process trains in this folder.
        DiskFull: there is no room for what it writes.
    """
    spec = TrainSpec.read(path)
    if spec.parent and "TORCHELASTIC_RUN_ID" not in os.environ:
        die_with_parent(spec.parent)
    # Of several processes that train as one, the first holds the lock for all.
    with hold(Path(spec.out)) if os.environ.get("RANK", "0") == "0" else nullcontext():
        _train(spec)


def _train(spec: TrainSpec) -> None:
    # torch and transformers take seconds to import; a spec that is refused should not wait.
    from tunesmith.train.board import watched
    from tunesmith.train.fit import fit

    try:
        fit(spec, watched(emit, Path(spec.out)))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFull(
            f"the disk is full ({spec.out})",
            expected="room for a checkpoint",
            remedy="Make room and type the same command: it goes on from the last checkpoint.",
        ) from None


def main() -> int:
    """The process edge: every end is an event and an exit code."""
    try:
        run(Path(sys.argv[1]))
    except TunesmithError as error:
        code = error.code if isinstance(error, TrainingError) else TrainingError.code
        emit({"type": "error", "code": code, "message": str(error)})
        return 1
    except KeyboardInterrupt:
        emit({"type": "interrupted"})
        return 130
    except Exception as error:  # noqa: BLE001 - the process edge: any end has to become an event
        said = f"{type(error).__name__}: {error}"
        emit({"type": "error", "code": TrainingError.code, "message": said})
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
