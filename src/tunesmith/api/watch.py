"""Every request is named, counted and logged, and every change is written down."""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
import time
from typing import Any, cast

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tunesmith.api.gate import READING
from tunesmith.api.logs import Log
from tunesmith.api.metrics import Metrics
from tunesmith.api.who import Who
from tunesmith.store.keys import Entry, Keys

CHANGES_NOTHING = frozenset(
    {"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/logprobs"}
    | {"/v1/fine_tuning/alpha/graders/run", "/v1/fine_tuning/alpha/graders/validate"}
)
"""Routes that are posted to and answer without keeping anything; a route that does keep something
sets `request.state.subject` to its id."""
LISTS = frozenset({"parts", "permissions"})
"""Last words of routes that name a list below one thing; other last words are verbs."""
LONGEST_SUBJECT = 255


class Watch:
    """Stands before the gate, so that refusals are seen too. No body and no secret is written."""

    def __init__(self, app: ASGIApp, *, keys: Keys, metrics: Metrics, log: Log | None) -> None:
        self._app, self._keys, self._metrics, self._log = app, keys, metrics, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, and see how it ends."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = f"req_{secrets.token_hex(12)}"
        scope.setdefault("state", {})["request_id"] = request_id
        name = (b"x-request-id", request_id.encode())
        status, began = 0, time.perf_counter()

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], name]}
            elif scope["method"] not in READING and not message.get("more_body", False):
                # Before the last byte, so that who has the answer finds the change in the log.
                await self._note(scope, status, message.get("body", b""))
            await send(message)

        self._metrics.in_flight.inc()
        try:
            await self._app(scope, receive, send_named)
        finally:
            failure = sys.exception()
            if not status:
                # 499: the client hung up before there was an answer.
                status = 500 if isinstance(failure, Exception) else 499
            self._metrics.in_flight.dec()
            self._end(scope, status, time.perf_counter() - began, failure)

    def _end(
        self, scope: Scope, status: int, seconds: float, failure: BaseException | None
    ) -> None:
        route, method, state = _template(scope), scope["method"], scope["state"]
        self._metrics.count(method, route, status, seconds)
        if self._log is None:
            return
        who: Who | None = state.get("who")
        self._log.write(
            failure,
            at=round(time.time(), 3),
            request=state["request_id"],
            method=method,
            route=route,
            status=status,
            seconds=round(seconds, 4),
            project=who.project if who else None,
            key=who.key if who else None,
        )

    async def _note(self, scope: Scope, status: int, body: bytes) -> None:
        route, state = _template(scope), scope["state"]
        subject: str | None = state.get("subject")
        if status >= 400 or not route or (route in CHANGES_NOTHING and subject is None):
            return
        who: Who = state["who"]
        entry = Entry(
            time.time(),
            who.project,
            who.key,
            action(scope["method"], route),
            (subject or _id_of(body) or scope["path"])[:LONGEST_SUBJECT],
            who.request,
        )
        await asyncio.to_thread(self._keys.note, entry)


def action(method: str, route: str) -> str:
    """files.create of POST /v1/files; fine_tuning.jobs.cancel of POST .../jobs/{job}/cancel."""
    parts = route.removeprefix("/v1/").split("/")
    named = ".".join(part for part in parts if not part.startswith("{"))
    if method == "DELETE":
        return f"{named}.delete"
    if parts[-1].startswith("{"):
        return f"{named}.update"
    verb = any(part.startswith("{") for part in parts) and parts[-1] not in LISTS
    return named if verb else f"{named}.create"


def _template(scope: Scope) -> str:
    return getattr(scope.get("route"), "path", "")


def _id_of(body: bytes) -> str | None:
    """The id of the object that was answered with."""
    try:
        value: Any = json.loads(body)
    except ValueError:
        return None
    found = cast("dict[str, Any]", value).get("id") if isinstance(value, dict) else None
    return found if isinstance(found, str) else None
