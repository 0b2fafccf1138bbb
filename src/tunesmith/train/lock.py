"""One trainer in a folder."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from tunesmith.errors import FolderBusy

PATIENCE = 5.0
"""Seconds; a process that was killed needs some of them to let go of its lock."""


@contextmanager
def hold(folder: Path) -> Generator[None]:
    """The lock of a run's folder, for as long as the context lasts.

    Raises:
        FolderBusy: another process keeps it.
    """
    lock = FileLock(folder / ".lock", timeout=PATIENCE)
    try:
        lock.acquire()
    except Timeout:
        raise FolderBusy(
            f"another process is training in {folder}",
            expected="a folder of its own for each run",
            remedy="Wait for it, stop it, or give another --out.",
        ) from None
    try:
        yield
    finally:
        lock.release()
