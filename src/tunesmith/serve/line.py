"""How many rows may wait for an engine, and when one that is turned away may come again."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from tunesmith.serve.wire import too_many

LONGEST_SECONDS = 60
"""Clients of the openai package do not wait for longer."""
SMOOTHING = 0.1


class Line:
    """Rows that were taken on and are not done.

    Args:
        at_once: rows that are decoded together.
        waiting: most rows that wait behind them; an idle engine takes any request.
        clock: seconds.
    """

    def __init__(
        self, at_once: int, waiting: int, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._most, self._clock = at_once + waiting, clock
        self._rows = 0
        self._since = 0.0
        self._gap = 0.0
        """Seconds from one row's end to the next one's, smoothed."""

    @property
    def rows(self) -> int:
        """Rows that are decoded or wait."""
        return self._rows

    def enter(self, rows: int) -> None:
        """Take on a request's rows.

        Raises:
            Refusal: 429, the line is full.
        """
        over = self._rows + rows - self._most
        if self._rows and over > 0:
            seconds = min(max(math.ceil(self._gap * over), 1), LONGEST_SECONDS)
            raise too_many(
                f"{self._rows} answers are under way or wait, and this model takes no more than "
                f"{self._most} at a time. Try again in {seconds} s.",
                seconds,
            )
        if not self._rows:
            self._since = self._clock()
        self._rows += rows

    def leave(self, rows: int = 1) -> None:
        """So many rows are done, or given up."""
        now = self._clock()
        gap = (now - self._since) / max(rows, 1)
        self._gap = self._gap + SMOOTHING * (gap - self._gap) if self._gap else gap
        self._since = now
        self._rows -= rows
