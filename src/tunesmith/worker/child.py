"""A worker beside a server: started, started anew when it ends, and ended with it."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

AGAIN_SECONDS = 1.0
"""How long after its end a worker is started anew."""
COMMAND = (sys.executable, "-m", "tunesmith.worker")


@asynccontextmanager
async def beside(log: Path, *, command: Sequence[str] = COMMAND) -> AsyncGenerator[None]:
    """Keep a worker running for the length of the block; what it says goes to `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    keeping = asyncio.create_task(_keep(log, command))
    try:
        yield
    finally:
        keeping.cancel()
        with suppress(asyncio.CancelledError):
            await keeping


async def _keep(log: Path, command: Sequence[str]) -> None:
    while True:
        with log.open("ab") as out:
            process = await asyncio.create_subprocess_exec(
                *command,
                str(os.getpid()),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        try:
            await process.wait()
        except asyncio.CancelledError:
            process.terminate()
            await process.wait()
            raise
        await asyncio.sleep(AGAIN_SECONDS)
