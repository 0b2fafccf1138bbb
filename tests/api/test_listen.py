from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import httpx
import pytest

WHO = b"GET /v1/who HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.mark.parametrize("sent", [b"", b"GET /v1/who HTTP/1.1\r\nHos"])
def test_a_connection_whose_head_does_not_come_is_closed(front: Any, sent: bytes) -> None:
    async def test(server: Any, http: httpx.AsyncClient) -> None:
        began = time.monotonic()
        async with server.connected(sent) as (reader, _):
            said = await asyncio.wait_for(reader.read(), 10)
        assert said == b""
        assert 0.2 < time.monotonic() - began < 5

    front(test, patience_seconds=0.3)


def test_a_head_that_drips_is_not_waited_for(front: Any) -> None:
    async def test(server: Any, http: httpx.AsyncClient) -> None:
        began = time.monotonic()
        async with server.connected(b"GET /v1/who HTTP/1.1\r\nX: ") as (reader, writer):
            for _ in range(100):
                writer.write(b"x")
                await asyncio.sleep(0.05)
                if reader.at_eof() or writer.is_closing():
                    break
        assert time.monotonic() - began < 3

    front(test, patience_seconds=0.3)


def test_a_used_connection_waits_longer_for_a_next_head_than_for_the_rest_of_one(
    front: Any,
) -> None:
    async def test(server: Any, http: httpx.AsyncClient) -> None:
        async with server.connected() as (reader, writer):
            for _ in range(2):
                writer.write(WHO)
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                assert head.startswith("HTTP/1.1 200")
                await reader.readexactly(int(head.partition("content-length: ")[2].split()[0]))
                await asyncio.sleep(0.5)
            assert not reader.at_eof()
            writer.write(b"GET /")
            assert await asyncio.wait_for(reader.read(), 5) == b""

    front(test, patience_seconds=0.3)


def test_a_slow_answer_is_not_a_slow_client(front: Any) -> None:
    async def test(server: Any, http: httpx.AsyncClient) -> None:
        asking = asyncio.create_task(http.post("/v1/slow"))
        await asyncio.sleep(0.8)
        server.go_on.set()
        assert (await asking).status_code == 200

    front(test, patience_seconds=0.3)


def test_a_client_that_does_not_read_is_let_go(front: Any) -> None:
    async def test(server: Any, http: httpx.AsyncClient) -> None:
        async with server.connected(b"GET /v1/endless HTTP/1.1\r\nHost: localhost\r\n\r\n"):
            while not server.log.is_file():
                await asyncio.sleep(0.05)
            [line] = server.lines()
            assert line["route"] == "/v1/endless"

    front(test, patience_seconds=0.3)


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 70_000,
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    ],
    ids=["no host", "TLS", "long head", "two lengths"],
)
def test_what_is_no_http_is_400_in_openais_words(front: Any, sent: bytes) -> None:
    async def test(server: Any, http: httpx.AsyncClient) -> None:
        async with server.connected(sent) as (reader, _):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            assert head.startswith("HTTP/1.1 400 ")
            length = int(head.partition("content-length: ")[2].split()[0])
            body = json.loads(await reader.readexactly(length))
        assert body["error"]["type"] == "invalid_request_error"
        assert (await http.get("/v1/who")).status_code == 200

    front(test)
