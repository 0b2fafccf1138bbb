"""The socket, and HTTP on it with clients that may be slow, silent or wrong."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from tunesmith.errors import UsageError
from tunesmith.serve.wire import error_body

GRACE_SECONDS = 5
"""How long requests in hand may go on once the server is told to end."""
KEEP_ALIVE_SECONDS = 30
"""How long a connection is kept for a next request; longer than clients' pools keep theirs."""


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        UsageError: the port is taken, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise UsageError(
            f"cannot listen on {host}:{port}: {error.strerror}",
            expected="a free port of this machine",
            remedy="Choose another with --port, or 0 for any.",
        ) from None


def server(app: ASGIApp, *, patience: float) -> uvicorn.Server:
    """A server that closes connections on which nothing moves for `patience` seconds.

    X-Forwarded-For is not believed, and nothing is upgraded to a WebSocket.
    """

    class Protocol(PatientProtocol):
        patience_seconds = patience

    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        proxy_headers=False,
        log_level="warning",
        access_log=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    return uvicorn.Server(config)


class PatientProtocol(H11Protocol):
    """uvicorn's protocol, which by itself waits for ever for a head, and for an answer to be read.

    The head of a request has to be there `patience_seconds` after the connection is made, or after
    its first byte; an answer that finds no reader for as long is broken off. Heads are held to
    h11's 16 KiB. What is no HTTP is answered with OpenAI's error body.
    """

    patience_seconds = 30.0
    _head: asyncio.TimerHandle | None = None
    _reader: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first head."""
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        """Take bytes; the wait for a head ends with it, not with a byte of it."""
        super().data_received(data)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing more."""
        super().connection_lost(exc)
        for timer in (self._head, self._reader):
            if timer is not None:
                timer.cancel()

    def pause_writing(self) -> None:
        """The client does not read; for how long?"""
        super().pause_writing()
        self._reader = self.loop.call_later(self.patience_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """It reads again."""
        super().resume_writing()
        if self._reader is not None:
            self._reader.cancel()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, and close."""
        body = json.dumps(error_body(msg, kind="invalid_request_error")).encode()
        headers: list[Any] = [
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("connection", "close"),
        ]
        for event in (
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _await_head(self) -> None:
        waiting = self.conn.their_state is h11.IDLE
        if waiting and self._head is None:
            self._head = self.loop.call_later(self.patience_seconds, self.transport.close)
        elif not waiting and self._head is not None:
            self._head.cancel()
            self._head = None
