"""What a client may ask of the server: how often, how much at once, how large, how slowly."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from starlette.types import Message, Receive

from tunesmith.serve.wire import Refusal, too_many

SLOWEST = 1024
"""Bytes a second that keep a client's request alive."""
LINGER_SECONDS = 5.0
"""How long a refused body is still taken in, so that the client reads the refusal."""
REMEMBERED = 10_000
"""Keys and addresses whose rates are kept."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """What is left of a rate after a request."""

    limit: int
    left: float
    """Requests that may come at once."""

    def headers(self) -> list[tuple[bytes, bytes]]:
        """OpenAI's x-ratelimit headers."""
        reset = (self.limit - self.left) * 60 / self.limit
        return [
            (b"x-ratelimit-limit-requests", b"%d" % self.limit),
            (b"x-ratelimit-remaining-requests", b"%d" % self.left),
            (b"x-ratelimit-reset-requests", b"%.3gs" % reset),
        ]


class Rates:
    """Requests a minute by name: a token bucket for each, which holds a minute's worth.

    A bucket that nobody has drawn on for a minute is full and need not be remembered; beyond
    `REMEMBERED` names the ones that drew longest ago are forgotten.
    """

    def __init__(self, limit: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit, self._clock = limit, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def spend(self, name: str) -> Allowance:
        """Draw on a bucket.

        Raises:
            Refusal: 429, it is empty.
        """
        now = self._clock()
        left, at = self._buckets.get(name, (float(self._limit), now))
        left = min(self._limit, left + (now - at) * self._limit / 60)
        if left < 1:
            said = f"Rate limit reached: {self._limit} requests a minute."
            raise too_many(said, (1 - left) * 60 / self._limit)
        self._buckets[name] = (left - 1, now)
        self._buckets.move_to_end(name)
        if len(self._buckets) > REMEMBERED:
            self._buckets.popitem(last=False)
        return Allowance(self._limit, left - 1)


class Places:
    """Requests at once by name."""

    def __init__(self, most: int) -> None:
        self._most, self._taken = most, Counter[str]()

    @contextmanager
    def take(self, name: str) -> Generator[None]:
        """Hold a place during the block.

        Raises:
            Refusal: 429, all are taken.
        """
        if self._taken[name] >= self._most:
            raise too_many(f"Rate limit reached: {self._most} requests at once.", 1)
        self._taken[name] += 1
        try:
            yield
        finally:
            self._taken[name] -= 1
            if not self._taken[name]:
                del self._taken[name]


class Body:
    """A request's body as it comes, from a client that may stall, stop or never end.

    Args:
        patience: seconds that the server may be kept waiting; every `SLOWEST` bytes that come win
            one back. Time in which nobody asks for more does not count.
    """

    def __init__(self, receive: Receive, *, patience: float) -> None:
        self._receive, self._patience, self._left = receive, patience, patience
        self.done = False

    async def receive(self) -> Message:
        """The next message.

        Raises:
            Refusal: 408, the client keeps the server waiting.
        """
        if self.done:
            return await self._receive()
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._left):
                message = await self._receive()
        except TimeoutError:
            said = "The body of the request did not come in time."
            raise Refusal(said, status=408, code="request_timeout") from None
        earned = len(message.get("body", b"")) / SLOWEST
        self._left = min(self._patience, self._left - (time.monotonic() - began) + earned)
        self.done = not message.get("more_body", False)
        return message

    async def read(self, most: int) -> bytes | None:
        """All of it; None when the client has hung up.

        Raises:
            Refusal: 413, it has more than `most` bytes; 408.
        """
        whole = bytearray()
        while not self.done:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                return None
            whole += message.get("body", b"")
            if len(whole) > most:
                raise too_large(most)
        return bytes(whole)

    async def drain(self) -> None:
        """Take in what still comes, for a moment.

        A connection that is closed on unread bytes is reset, and the answer may be lost with it.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while not self.done:
                    self.done = not (await self._receive()).get("more_body", False)


def too_large(most: int) -> Refusal:
    """413 for a body of more than `most` bytes."""
    return Refusal(
        f"The body of the request is larger than {most} bytes.", status=413, code="body_too_large"
    )
