"""A process that takes its turn when told: reads a line, works, says what it cost.

Standard library only: it is imported by programs in two environments.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

THREADS = int(os.environ.get("BENCH_THREADS", os.cpu_count() or 1))


class Turns:
    """The pipe to the process that hands out turns; everything else that is printed goes aside."""

    def __init__(self) -> None:
        self._out: TextIO = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def wait(self) -> bool:
        """Whether there is another turn; blocks until it is known."""
        return sys.stdin.readline().strip() == "go"

    def say(self, value: dict[str, Any]) -> None:
        """One line to the other side."""
        self._out.write(json.dumps(value) + "\n")
        self._out.flush()

    def take(self, work: Callable[[], dict[str, Any]]) -> None:
        """Work at every turn until there is none."""
        self.say({"ready": True})
        while self.wait():
            clock = Clock()
            self.say({**work(), **clock.read()})


class Clock:
    """Wall, processor and system seconds since it was made, and the peak of resident memory."""

    def __init__(self) -> None:
        self._wall, self._used = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)

    def read(self) -> dict[str, float]:
        """What has been used so far."""
        used = resource.getrusage(resource.RUSAGE_SELF)
        system = used.ru_stime - self._used.ru_stime
        return {
            "wall": time.perf_counter() - self._wall,
            "cpu": used.ru_utime - self._used.ru_utime + system,
            "system": system,
            "peak_mb": used.ru_maxrss / 1024,
        }
