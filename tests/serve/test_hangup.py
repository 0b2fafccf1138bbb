from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from starlette.requests import Request
from starlette.types import Message

from tunesmith.serve.hangup import EventStream, while_connected


def request(messages: list[Message]) -> Request:
    async def receive() -> Message:
        if messages:
            return messages.pop(0)
        return await asyncio.get_running_loop().create_future()

    return Request({"type": "http"}, receive)


async def answer() -> int:
    return 42


async def broken() -> int:
    raise ValueError("no")


def test_work_for_a_client_that_listens_gives_its_result() -> None:
    assert asyncio.run(while_connected(request([]), answer())) == 42


def test_work_for_a_client_that_hung_up_is_cancelled() -> None:
    cancelled: list[bool] = []

    async def endless() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            cancelled.append(True)

    hangup: list[Message] = [{"type": "http.disconnect"}]
    assert asyncio.run(while_connected(request(hangup), endless())) is None
    assert cancelled == [True]


def test_what_fails_fails() -> None:
    with pytest.raises(ValueError, match="no"):
        asyncio.run(while_connected(request([]), broken()))


def test_a_stream_is_closed_though_its_client_was_gone_before_it_began() -> None:
    closed: list[bool] = []

    async def events() -> AsyncIterator[str]:
        yield "data: 1\n\n"

    async def close() -> None:
        closed.append(True)

    async def gone(_: Message) -> None:
        raise OSError

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def go() -> None:
        await EventStream(events(), close)({"type": "http"}, receive, gone)

    with contextlib.suppress(OSError, BaseExceptionGroup):
        asyncio.run(go())
    assert closed == [True]
