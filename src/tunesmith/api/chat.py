"""Chat completions and log-probabilities, forwarded to the engine that has the weights."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx
from fastapi import Request
from fastapi.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from tunesmith.api.models import ModelRoutes
from tunesmith.serve.hangup import while_connected
from tunesmith.serve.router import Router
from tunesmith.serve.wire import ChatRequest, LogprobsRequest, Refusal, error_body, event

JSON = "application/json"
BROKE_OFF = "The engine broke off; it is started again at the next request."


class ChatRoutes:
    """The routes that need an engine."""

    def __init__(self, models: ModelRoutes, router: Router, http: httpx.AsyncClient) -> None:
        self._models, self._router, self._http = models, router, http

    async def chat(self, body: ChatRequest, request: Request) -> Response:
        """POST /v1/chat/completions."""
        payload = body.model_dump(exclude_unset=True)
        if body.stream:
            return await self._relay(payload)
        return await self._forward("/v1/chat/completions", payload, request)

    async def logprobs(self, body: LogprobsRequest, request: Request) -> Response:
        """POST /v1/logprobs."""
        return await self._forward("/v1/logprobs", body.model_dump(exclude_unset=True), request)

    async def _forward(self, path: str, payload: dict[str, Any], request: Request) -> Response:
        answer = await while_connected(request, self._send(path, payload, stream=False))
        if answer is None:
            return Response(status_code=499)
        return Response(answer.content, answer.status_code, media_type=JSON)

    async def _relay(self, payload: dict[str, Any]) -> Response:
        upstream = await self._send("/v1/chat/completions", payload, stream=True)
        if upstream.is_success:
            return _Relay(upstream)
        return Response(await upstream.aread(), upstream.status_code, media_type=JSON)

    async def _send(self, path: str, payload: Mapping[str, Any], *, stream: bool) -> httpx.Response:
        """The engine's answer; the engine is started and given the adapter when need be.

        One that refuses the connection has ended, and the request, which it never saw, goes to
        the next one.
        """
        deployment = await self._models.deployment(payload["model"])
        for _ in range(2):
            # Others wait for the same engine: its start goes on when this client hangs up.
            engine = await asyncio.shield(self._router.engine(deployment))
            name = engine.spec.name if deployment.adapter is None else deployment.name
            headers = {"authorization": f"Bearer {engine.key}"}
            asked = self._http.build_request(
                "POST", engine.url + path, json={**payload, "model": name}, headers=headers
            )
            try:
                return await self._http.send(asked, stream=stream)
            except httpx.ConnectError:
                engine.lost()
            except httpx.TransportError:
                break
        raise Refusal(BROKE_OFF, status=502, kind="server_error", code="engine_failed")


class _Relay(StreamingResponse):
    """An engine's events passed on as they come; the engine hears when the client hangs up."""

    def __init__(self, upstream: httpx.Response) -> None:
        super().__init__(
            _events(upstream),
            media_type="text/event-stream",
            headers={"cache-control": "no-store"},
        )
        self._upstream = upstream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._upstream.aclose()


async def _events(upstream: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for chunk in upstream.aiter_raw():
            yield chunk
    except httpx.TransportError:
        yield event(error_body(BROKE_OFF, kind="server_error", code="engine_failed")).encode()
