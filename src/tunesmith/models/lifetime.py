"""Processes that compute: what they start with, and that they end with who started them."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
import threading
import time
from contextlib import suppress

PR_SET_PDEATHSIG = 1

ALLOCATOR = "hugetlb=1", "mmap_max=0", f"trim_threshold={1 << 34}", f"top_pad={1 << 28}"


def environment() -> dict[str, str]:
    """What a process that computes is started with: ours, offline, an allocator that keeps memory.

    glibc otherwise gives each large tensor back, and the next one comes as page faults; it is told
    to keep them, in large pages. Other C libraries ignore it.
    """
    tunables = ":".join(f"glibc.malloc.{setting}" for setting in ALLOCATOR)
    return {
        "GLIBC_TUNABLES": tunables,
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def die_with_parent(parent: int) -> None:
    """End this process when `parent` ends: by the kernel on Linux, by watching elsewhere."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


async def end(process: asyncio.subprocess.Process, *, patience: float) -> None:
    """SIGTERM, after so many seconds SIGKILL to the whole group; it is gone when this returns."""
    if process.returncode is None:
        _signal_group(process, signal.SIGTERM)
        with suppress(TimeoutError):
            await asyncio.wait_for(process.communicate(), patience)
    _signal_group(process, signal.SIGKILL)
    await process.communicate()


def _signal_group(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)
