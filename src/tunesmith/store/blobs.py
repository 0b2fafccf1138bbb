"""The bytes of files and of uploads' parts: one file each in one folder, named by its id.

What a person calls a file is never part of a path.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

ID = re.compile(r"(file-|part_)[A-Za-z0-9]{8,40}")
JOBS = "jobs"
"""The folder of the jobs' run folders in TUNESMITH_HOME."""
UNFINISHED_SECONDS = 86_400
"""How long a write may take before what it left is swept up."""


class Blobs:
    """A folder of bytes; only its owner may read it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.chmod(0o700)

    def path(self, blob_id: str) -> Path:
        """Where the bytes of this id are, or will be."""
        assert ID.fullmatch(blob_id), blob_id
        return self.folder / blob_id

    def scratch(self, blob_id: str) -> Path:
        """Where they are written before they are whole."""
        return self.path(blob_id).with_suffix(".partial")

    def place(self, blob_id: str) -> None:
        """Rename what was written into its place, for good."""
        scratch = self.scratch(blob_id)
        with scratch.open("rb+") as file:
            os.fsync(file.fileno())
        scratch.chmod(0o600)
        scratch.replace(self.path(blob_id))

    def put(self, blob_id: str, content: bytes) -> None:
        """Write bytes that are at hand."""
        self.scratch(blob_id).write_bytes(content)
        self.place(blob_id)

    def remove(self, blob_id: str) -> None:
        """Delete the bytes of an id, if there are any."""
        self.path(blob_id).unlink(missing_ok=True)

    def sweep(self, known: set[str]) -> int:
        """Delete what no file is known for: what a kill left behind. Fresh ones are left alone.

        Args:
            known: ids that are needed, read from the database *before* this call.

        Returns:
            How many were deleted.
        """
        gone = 0
        for path in self.folder.iterdir():
            old = time.time() - path.stat().st_mtime > UNFINISHED_SECONDS
            if path.name not in known and old:
                path.unlink(missing_ok=True)
                gone += 1
        return gone


def remove_copies(home: Path, job_id: str) -> None:
    """Delete the rows that an ended job's run folder keeps of its files."""
    for path in (home / JOBS / job_id / "data").glob("*.jsonl"):
        path.unlink(missing_ok=True)
