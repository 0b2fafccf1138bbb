"""Work for a client lasts as long as the client listens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

T = TypeVar("T")


class EventStream(StreamingResponse):
    """Server-sent events, whose source is closed at their end or when the client hangs up.

    Also when the client was gone before the first of them, which would leave a generator's own
    `finally` unreached.
    """

    def __init__(
        self, events: AsyncIterable[str | bytes], close: Callable[[], Awaitable[None]]
    ) -> None:
        headers = {"cache-control": "no-store"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See StreamingResponse."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._close()


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T | None:
    """The result of `work`, or None when the client hung up first; `work` is then cancelled.

    The request's body has to be read already: from then on the next message is the hang-up.
    """
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_hangup(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _hangup(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
