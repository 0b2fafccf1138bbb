"""Chats, completions and log-probabilities, forwarded to the engine that has the weights."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import httpx
from fastapi import APIRouter, Request
from fastapi.responses import Response
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletionChunk

from tunesmith.api.models import ModelRoutes
from tunesmith.api.pages import router
from tunesmith.api.who import Who, who
from tunesmith.errors import EngineError
from tunesmith.graders.grading import Chat
from tunesmith.serve.hangup import EventStream, while_connected
from tunesmith.serve.router import Router
from tunesmith.serve.wire import ChatRequest, LogprobsRequest, Refusal, error_body, event
from tunesmith.serve.wire_text import CompletionRequest

JSON = "application/json"
BROKE_OFF = "The engine broke off; it is started again at the next request."
CHATS = "/v1/chat/completions"

Keep = Callable[[Who, dict[str, Any], dict[str, Any]], Awaitable[None]]
"""Stores a chat: who asked, what, with its metadata, and the `chat.completion` that answered it."""
Asked = Callable[[dict[str, Any]], Awaitable[None]]
"""Stores the answer to one request."""


class ChatRoutes:
    """The routes that need an engine.

    Args:
        keep: called with each answered chat that is to be stored.
    """

    def __init__(
        self, models: ModelRoutes, router: Router, http: httpx.AsyncClient, *, keep: Keep
    ) -> None:
        self._models, self._router, self._http, self._keep = models, router, http, keep

    def routes(self) -> APIRouter:
        """The routes."""
        out = router()
        for path, endpoint in (
            ("/chat/completions", self.chat),
            ("/completions", self.completions),
            ("/logprobs", self.logprobs),
        ):
            out.add_api_route(path, endpoint, methods=["POST"], response_model=None)
        return out

    async def chat(self, body: ChatRequest, request: Request) -> Response:
        """POST /v1/chat/completions."""
        payload = body.model_dump(exclude_unset=True)
        asked = dict(payload)
        for name in ("store", "metadata"):
            payload.pop(name, None)
        keep = partial(self._store, request, asked) if body.store else None
        if body.stream:
            return await self._relay(CHATS, payload, request, Record(asked, keep) if keep else None)
        answer = await self._forward(CHATS, payload, request)
        if keep is not None and answer.status_code == 200:
            await keep(json.loads(bytes(answer.body)))
        return answer

    async def _store(self, request: Request, asked: dict[str, Any], answer: dict[str, Any]) -> None:
        await self._keep(who(request), asked, answer)
        request.state.subject = answer["id"]

    async def completions(self, body: CompletionRequest, request: Request) -> Response:
        """POST /v1/completions."""
        payload = body.model_dump(exclude_unset=True)
        if body.stream:
            return await self._relay("/v1/completions", payload, request)
        return await self._forward("/v1/completions", payload, request)

    async def logprobs(self, body: LogprobsRequest, request: Request) -> Response:
        """POST /v1/logprobs."""
        return await self._forward("/v1/logprobs", body.model_dump(exclude_unset=True), request)

    async def _forward(self, path: str, payload: dict[str, Any], request: Request) -> Response:
        sending = self._send(path, payload, who(request).project)
        answer = await while_connected(request, sending)
        return Response(status_code=499) if answer is None else _passed(answer, answer.content)

    def of(self, project: str) -> Chat:
        """What a project's graders ask: the models that it may use."""

        async def ask(
            model: str, messages: Sequence[Mapping[str, Any]], arguments: Mapping[str, Any]
        ) -> tuple[str | None, dict[str, int]]:
            payload = {**arguments, "model": model, "messages": list(messages)}
            checked = ChatRequest.model_validate(payload).model_dump(exclude_unset=True)
            answer = await self._send(CHATS, checked, project)
            said = answer.json()
            if not answer.is_success:
                raise EngineError(said["error"]["message"])
            return said["choices"][0]["message"]["content"], said["usage"]

        return ask

    async def _relay(
        self,
        path: str,
        payload: dict[str, Any],
        request: Request,
        record: Record | None = None,
    ) -> Response:
        if record is not None:
            options = payload.get("stream_options") or {}
            payload = {**payload, "stream_options": {**options, "include_usage": True}}
        async with AsyncExitStack() as stack:
            asking = self._asked(path, payload, who(request).project, stream=True)
            upstream = await stack.enter_async_context(asking)
            if not upstream.is_success:
                return _passed(upstream, await upstream.aread())
            events = _events(upstream) if record is None else record.follow(_events(upstream))
            return EventStream(events, stack.pop_all().aclose)

    async def _send(self, path: str, payload: Mapping[str, Any], project: str) -> httpx.Response:
        """The engine's whole answer."""
        async with self._asked(path, payload, project, stream=False) as answer:
            return answer

    @asynccontextmanager
    async def _asked(
        self, path: str, payload: Mapping[str, Any], project: str, *, stream: bool
    ) -> AsyncGenerator[httpx.Response]:
        """The engine's answer; the engine is started and given the adapter when need be, and keeps
        it for the length of the block.

        One that refuses the connection has ended, and the request, which it never saw, goes to
        the next one.
        """
        deployment = await self._models.deployment(payload["model"], project)
        for _ in range(2):
            # Others wait for the same engine: its start goes on when this client hangs up.
            engine = await asyncio.shield(self._router.engine(deployment))
            with self._router.answering(deployment):
                name = engine.spec.name if deployment.adapter is None else deployment.name
                headers = {"authorization": f"Bearer {engine.key}"}
                asked = self._http.build_request(
                    "POST", engine.url + path, json={**payload, "model": name}, headers=headers
                )
                try:
                    answer = await self._http.send(asked, stream=stream)
                except httpx.ConnectError:
                    engine.lost()
                    continue
                except httpx.TransportError:
                    break
                try:
                    yield answer
                finally:
                    await answer.aclose()
                return
        raise Refusal(BROKE_OFF, status=502, kind="server_error", code="engine_failed")


class Record:
    """A streamed chat put together again while it passes, and kept once it is whole."""

    def __init__(self, asked: dict[str, Any], keep: Asked) -> None:
        self._asked, self._keep = asked, keep
        self._state = ChatCompletionStreamState()
        options: dict[str, Any] = asked.get("stream_options") or {}
        self._usage_asked = bool(options.get("include_usage"))

    async def follow(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """The events as they come, without the usage that only the record asked for."""
        rest = b""
        async for chunk in chunks:
            *whole, rest = (rest + chunk).split(b"\n\n")
            for item in whole:
                if item == b"data: [DONE]":
                    answer = self._state.get_final_completion()
                    await self._keep(_plain(answer.to_dict(mode="json")))
                elif self._taken(item):
                    continue
                yield item + b"\n\n"

    def _taken(self, item: bytes) -> bool:
        """Whether an event is the record's alone."""
        try:
            value: Any = json.loads(item.removeprefix(b"data: "))
        except ValueError:
            # The engine broke off within it.
            return False
        if "error" in value:
            return False
        self._state.handle_chunk(ChatCompletionChunk.model_validate(value))
        return not value["choices"] and not self._usage_asked


def _plain(answer: dict[str, Any]) -> dict[str, Any]:
    """Without what the openai package adds to an answer."""
    for choice in answer["choices"]:
        message: dict[str, Any] = choice["message"]
        for name in [name for name, value in message.items() if value is None]:
            if name not in ("content", "refusal"):
                del message[name]
        message.pop("parsed", None)
        for call in message.get("tool_calls", ()):
            call.pop("index", None)
            call["function"].pop("parsed_arguments", None)
        if "tool_calls" in message:
            message["content"] = message["content"] or None
    return answer


def _passed(upstream: httpx.Response, content: bytes) -> Response:
    """An engine's answer as ours, with what it says of when to come again."""
    again = upstream.headers.get("retry-after")
    headers = None if again is None else {"retry-after": again}
    return Response(content, upstream.status_code, headers, JSON)


async def _events(upstream: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for chunk in upstream.aiter_raw():
            yield chunk
    except httpx.TransportError:
        yield event(error_body(BROKE_OFF, kind="server_error", code="engine_failed")).encode()
