from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tunesmith.models.lifetime import environment

PARENT = """
import os, subprocess, sys, time
code = (
    "import os, time; from tunesmith.models.lifetime import die_with_parent;"
    "die_with_parent(os.getppid()); print(os.getpid(), flush=True); time.sleep(60)"
)
subprocess.Popen([sys.executable, "-c", code])
time.sleep(60)
"""


def test_a_process_starts_offline_with_an_allocator_that_keeps_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    started = environment()
    assert started["HF_HUB_OFFLINE"] == "1"
    assert "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0" in started["GLIBC_TUNABLES"]
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.arena_max=1")
    assert environment()["GLIBC_TUNABLES"] == "glibc.malloc.arena_max=1"


def gone(pid: int, seconds: float = 10) -> bool:
    """Whether a process ends in time; one that nobody has reaped yet has ended."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_ends_with_the_process_that_started_it() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    os.kill(child, 0)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    assert gone(child)


def test_a_process_whose_parent_is_another_ends_at_once() -> None:
    code = "from tunesmith.models.lifetime import die_with_parent; die_with_parent(1); print('on')"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (1, "")
