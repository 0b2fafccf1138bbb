"""The gate: every request passes it before any route, or is refused in OpenAI's words."""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import re
import time
from urllib.parse import urlsplit

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tunesmith.api.limits import Body, Places, Rates, too_large
from tunesmith.api.who import Who
from tunesmith.serve.wire import Refusal
from tunesmith.settings import Settings
from tunesmith.store.keys import PREFIX, Key, Keys

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
"""Names of this machine to itself."""
READING = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that change nothing: all that a key with the role `read` may use."""
OPEN = frozenset({"/health", "/ready"})
"""What needs no key anywhere: it tells nothing but whether the server works."""
KEPT_SECONDS = 5.0
"""How long a looked-up key is not looked up again, so how long a revoked one may still open."""
KEPT = 10_000
"""Looked-up keys, right and wrong ones, that are kept at most."""
NO_KEY = (
    "You didn't provide an API key. Provide it in an Authorization header, "
    "as in 'Authorization: Bearer YOUR_KEY'."
)
WRONG_KEY = "Incorrect API key provided. `tunesmith keys list` lists the keys of this server."

_STREAMED = re.compile(r"/v1/(files|uploads/[^/]+/parts)/?")


class Gate:
    """Finds out who asks, and lets in what is theirs to ask, in bounded amounts.

    On loopback no key is asked for, but only this machine's own requests are let in: a foreign
    Host is what DNS rebinding sends (421), a foreign Origin what another site's page sends (403).
    Beyond loopback every request needs a key. Bodies are read here, up to a limit and against the
    clock, so that routes never wait for one; only files stream through to their routes.

    Args:
        loopback: whether the server listens on loopback only.
    """

    def __init__(self, app: ASGIApp, *, keys: Keys, settings: Settings, loopback: bool) -> None:
        self._app, self._loopback, self._settings = app, loopback, settings
        self._keys = KnownKeys(keys)
        self._rates = Rates(settings.requests_per_minute)
        self._places = Places(settings.max_concurrent)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        coming = Body(receive, patience=self._settings.patience_seconds)
        coming.done = headers.get("content-length", "0") == "0" and (
            "transfer-encoding" not in headers
        )
        answer = _Answer(send, coming)
        try:
            self._check_address(scope, headers)
            if scope["path"] in OPEN:
                await self._app(scope, receive, answer.send)
                return
            who, name = await self._who(scope, headers, answer)
            scope["state"]["who"] = who
            if scope["method"] not in READING:
                who.may("write")
            with self._places.take(name):
                await self._pass(scope, headers, coming, answer)
        except Refusal as refusal:
            await answer.refuse(refusal, scope)

    def _check_address(self, scope: Scope, headers: Headers) -> None:
        if self._loopback:
            _check_own(headers)
        if headers.get("upgrade", "").lower() == "websocket":
            raise Refusal("There are no WebSockets here.")
        if "\0" in scope["path"] or b"%00" in scope["query_string"]:
            raise Refusal("The address of the request has the character NUL in it.")

    async def _who(self, scope: Scope, headers: Headers, answer: _Answer) -> tuple[Who, str]:
        """Who asks, and the name that the request is counted under."""
        scheme, _, secret = headers.get("authorization", "").partition(" ")
        secret = secret.strip() if scheme.lower() == "bearer" else ""
        address, request = _address(scope), scope["state"].get("request_id")
        key = None
        # On loopback people's code may send another server's key; it says nothing here.
        if secret.startswith(PREFIX):
            if not self._keys.knows(secret):
                self._rates.spend(f"{address} tries keys")
            key = await self._keys.find(secret)
        name = address if key is None else key.id
        answer.extra += self._rates.spend(name).headers()
        if key is not None:
            return Who(key.project, key.id, key.role, request), name
        if self._loopback:
            return Who(request=request), name
        said = WRONG_KEY if secret else NO_KEY
        raise Refusal(said, status=401, code="invalid_api_key")

    async def _pass(self, scope: Scope, headers: Headers, coming: Body, answer: _Answer) -> None:
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise Refusal("Send the body without Content-Encoding.", status=415)
        if coming.done:
            await self._app(scope, coming.receive, answer.send)
            return
        if scope["method"] == "POST" and _STREAMED.fullmatch(scope["path"]):
            await self._app(scope, coming.receive, answer.send)
            return
        most = self._settings.max_body_bytes
        if int(headers.get("content-length", "0")) > most:
            raise too_large(most)
        body = await coming.read(most)
        if body is None:
            return
        first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Message:
            return first.pop() if first else await coming.receive()

        await self._app(scope, receive, answer.send)


class KnownKeys:
    """Keys by their secrets; one look-up in the store serves all who ask within some seconds."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._found: dict[bytes, tuple[float, asyncio.Task[Key | None]]] = {}

    def knows(self, secret: str) -> bool:
        """Whether a look-up would not go to the store."""
        return self._kept(_digest(secret)) is not None

    async def find(self, secret: str) -> Key | None:
        """The open key of that secret."""
        digest = _digest(secret)
        task = self._kept(digest)
        if task is None:
            if len(self._found) >= KEPT:
                self._found.clear()
            task = asyncio.create_task(asyncio.to_thread(self._keys.find, secret))
            self._found[digest] = (time.monotonic() + KEPT_SECONDS, task)
        # Others wait for the same look-up: it goes on when this client hangs up.
        return await asyncio.shield(task)

    def _kept(self, digest: bytes) -> asyncio.Task[Key | None] | None:
        until, task = self._found.get(digest, (0.0, None))
        if task is None or until < time.monotonic():
            return None
        failed = task.done() and (task.cancelled() or task.exception() is not None)
        return None if failed else task


class _Answer:
    """The way back to the client: it carries the rate's headers, and ends what was not read."""

    def __init__(self, send: Send, coming: Body) -> None:
        self._send, self._coming = send, coming
        self.extra: list[tuple[bytes, bytes]] = []
        self._started = self._unread = False

    async def send(self, message: Message) -> None:
        """Pass a message of the answer on."""
        if message["type"] == "http.response.start":
            self._started = True
            # A connection cannot be used again behind a body that was not read to its end.
            self._unread = not self._coming.done
            if self._unread:
                self.extra.append((b"connection", b"close"))
            message = {**message, "headers": [*message["headers"], *self.extra]}
        elif self._unread and not message.get("more_body", False):
            await self._send({**message, "more_body": True})
            await self._coming.drain()
            message = {"type": "http.response.body", "body": b""}
        await self._send(message)

    async def refuse(self, refusal: Refusal, scope: Scope) -> None:
        """Answer with an error body; an answer that was under way breaks off."""
        if self._started:
            raise refusal
        answer = JSONResponse(refusal.body(), refusal.status, refusal.headers)
        await answer(scope, self._coming.receive, self.send)


def _check_own(headers: Headers) -> None:
    """Refuse a request that is not this machine's own."""
    host, origin = headers.get("host", ""), headers.get("origin")
    if _hostname(f"//{host}") not in LOOPBACK:
        raise Refusal(f"This server answers on loopback only, not as {host!r}.", status=421)
    if origin is not None and _hostname(origin) not in LOOPBACK:
        raise Refusal(f"Requests from pages of {origin} are refused.", status=403)


def _hostname(address: str) -> str | None:
    try:
        return urlsplit(address).hostname
    except ValueError:
        return None


def _address(scope: Scope) -> str:
    """Where a request comes from; a network of IPv6 addresses is one person's."""
    host: str = (scope.get("client") or ("unknown", 0))[0]
    if ":" not in host:
        return host
    return str(ipaddress.ip_network(f"{host.partition('%')[0]}/64", strict=False))


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
