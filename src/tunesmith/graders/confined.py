"""Python that others wrote, run where it can reach nothing: `run_confined`."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

from tunesmith.errors import GraderError
from tunesmith.graders import inside

_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64")
_FLAGS = ("-I", "-S", "-B", "-X", "utf8")
_MOST_OUTPUT = 65_536
_MOST_RESULT = 1_048_576
_LOOK_EVERY_MS = 100
_BLOCK = 512
_REMEDY = (
    "Use the other graders, or run the server on Linux 6.2 or later with Landlock switched on."
)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a confined call may use.

    Attributes:
        seconds: wall time, and processor time of its one thread.
        memory: bytes of address space.
        disk: bytes of the files it leaves in its private folder.
        file: bytes of one file, and of what it prints.
    """

    seconds: float = 120.0
    memory: int = 2 << 30
    disk: int = 1 << 30
    file: int = 32 << 20


@dataclass(frozen=True, slots=True)
class Result:
    """How a confined call ended.

    Attributes:
        value: what the function returned, through JSON; None when it failed.
        error: why there is no value, with the end of a traceback; None when there is one.
        output: the first 64 KiB that it printed.
        seconds: wall time.
    """

    value: Any
    error: str | None
    output: str
    seconds: float


def run_confined(
    source: str, payload: Sequence[Any], limits: Limits | None = None, *, call: str = "grade"
) -> Result:
    """The result of `call(*payload)` after `source` ran as a module, in a process of its own.

    The process has no network, no environment, one thread and no children; it reads the
    interpreter's standard library and writes plain files in a private folder that goes with it
    (`inside` says how). It is killed at the limits. What the source does to its own result is not
    kept from it: code under test that shares the process with its test can write the answer.

    Args:
        payload: arguments of the function, as JSON can write them.

    Raises:
        GraderError: this machine cannot confine.
    """
    if sys.platform != "linux":
        raise _unconfined(f"the system is {sys.platform}, which needs to be Linux")
    limits = limits or Limits()
    with (
        tempfile.TemporaryDirectory(prefix="tunesmith-") as folder,
        tempfile.TemporaryFile() as job,
        tempfile.TemporaryFile() as printed,
        tempfile.TemporaryFile() as said,
        tempfile.TemporaryFile() as result,
    ):
        job.write(_job(source, payload, limits, call, folder))
        job.seek(0)
        started = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, *_FLAGS, inside.__file__, str(result.fileno())],
            stdin=job,
            stdout=printed,
            stderr=said,
            pass_fds=(result.fileno(),),
            env={"TMPDIR": folder},
            cwd=folder,
            start_new_session=True,
        )
        try:
            killed = _watch(process.pid, folder, limits, started + limits.seconds)
        finally:
            process.kill()
            status = process.wait()
        seconds = time.monotonic() - started
        told = _text(said, _MOST_OUTPUT, last=True).strip()
        if status == inside.UNCONFINED:
            raise _unconfined(told)
        value, error = _value(result) if status == 0 and killed is None else (None, None)
        if value is None and error is None:
            error = killed or _ending(status, told)
        return Result(value, error, _text(printed, _MOST_OUTPUT), seconds)


@cache
def require_confinement() -> None:
    """See once that this machine can confine.

    Raises:
        GraderError: it cannot, and why.
    """
    run_confined("def grade(): return 1", ())


def _unconfined(found: str) -> GraderError:
    expected = "a kernel that can confine Python graders"
    return GraderError(f"cannot confine: {found}", expected=expected, remedy=_REMEDY)


def _job(source: str, payload: Sequence[Any], limits: Limits, call: str, folder: str) -> bytes:
    library = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}
    # One thread uses no more processor time than the clock shows: the clock's limit comes first.
    bounds = {
        "RLIMIT_AS": limits.memory,
        "RLIMIT_CPU": int(limits.seconds) + 1,
        "RLIMIT_FSIZE": limits.file,
        "RLIMIT_NOFILE": 32,
        "RLIMIT_CORE": 0,
    }
    job = {
        "source": source,
        "call": call,
        "arguments": list(payload),
        "folder": folder,
        "readable": [*sorted(library), *_LIBRARIES],
        "limits": bounds,
    }
    return json.dumps(job).encode()


def _watch(pid: int, folder: str, limits: Limits, deadline: float) -> str | None:
    """Wait for the end of a process; why it has to be ended before, if so."""
    ended = select.poll()
    descriptor = os.pidfd_open(pid)
    try:
        ended.register(descriptor, select.POLLIN)
        while not ended.poll(_LOOK_EVERY_MS):
            if time.monotonic() > deadline:
                return f"it took more than {limits.seconds:g} seconds"
            if _used(folder) > limits.disk:
                return f"its files took more than {limits.disk >> 20:,} MiB"
    finally:
        os.close(descriptor)
    return None


def _used(folder: str) -> int:
    """Bytes of the files in the folder, which cannot have folders in it."""
    used = 0
    for path in Path(folder).iterdir():
        try:
            used += path.lstat().st_blocks * _BLOCK
        except FileNotFoundError:
            continue
    return used


def _value(result: IO[bytes]) -> tuple[Any, str | None]:
    text = _text(result, _MOST_RESULT + 1)
    if not text:
        return None, "it ended without a result"
    try:
        return json.loads(text), None
    except (ValueError, RecursionError):
        return None, f"its result is not JSON of at most {_MOST_RESULT:,} bytes"


def _ending(status: int, told: str) -> str | None:
    if status == 0:
        return None
    if status < 0:
        return f"it was ended by {signal.Signals(-status).name}. {told}".strip()
    return told or f"it ended with status {status}"


def _text(file: IO[bytes], most: int, *, last: bool = False) -> str:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - most) if last else 0)
    return file.read(most).decode(errors="replace")
