"""A step of a job as a process of its own: events in, and no orphan whatever happens."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith.models.lifetime import end, environment

COMMAND = (sys.executable, "-m", "tunesmith.pipeline.job")
"""What runs a step; the path of its spec follows."""
END_SECONDS = 1.0
"""How long a process may take to end before it is killed."""
LINE_BYTES = 2**24
"""Longest event."""


class StepProcess:
    """A running step."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(
        cls,
        spec: Mapping[str, Any],
        folder: Path,
        *,
        command: Sequence[str] = COMMAND,
        extra: Mapping[str, str] | None = None,
    ) -> StepProcess:
        """Write the spec into the run's folder and start the process that reads it.

        Args:
            extra: environment variables beside those that every computing process has.
        """
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = folder / f"{spec['step']}.json"
        path.write_text(json.dumps({**spec, "parent": os.getpid()}, indent=2), encoding="utf-8")
        with (folder / "job.log").open("ab") as errors:
            process = await asyncio.create_subprocess_exec(
                *command,
                str(path),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
                limit=LINE_BYTES,
                env={**environment(), **(extra or {})},
            )
        return cls(process)

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """What it says, until it says no more; a line that a kill cut short is left out."""
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            if line.endswith(b"\n"):
                yield json.loads(line)

    async def wait(self) -> int:
        """Its exit code; negative where a signal ended it."""
        return await self._process.wait()

    async def end(self) -> None:
        """End it and whatever it started; nothing may still listen to its events."""
        await end(self._process, patience=END_SECONDS)
