"""The server's log: one JSON object a line, in a file that is turned over by its size."""

from __future__ import annotations

import json
import logging
import traceback
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

MOST_BYTES = 16 * 2**20
FILES = 4
"""Older files that are kept, as in server.jsonl.1."""


class Log:
    """A log file, readable by its owner alone. As a context manager it is closed at the end."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.parent.chmod(0o700)
        self._file = RotatingFileHandler(
            path, maxBytes=MOST_BYTES, backupCount=FILES, encoding="utf-8", delay=True
        )

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, failure: BaseException | None = None, /, **values: Any) -> None:
        """Add a line; the traceback of a failure goes with it."""
        if failure is not None:
            values["traceback"] = "".join(traceback.format_exception(failure))
        line = json.dumps(values, ensure_ascii=False, separators=(",", ":"))
        self._file.handle(logging.makeLogRecord({"msg": line}))
