"""The HTTP side of an engine process: OpenAI's chat completions over one sampler.

What OpenAI's wire format cannot say has routes of its own: /v1/logprobs scores a given answer,
/v1/adapters loads and drops LoRA weights beside the one copy of the base.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

from fastapi import Depends, FastAPI
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response, StreamingResponse

from tunesmith.chat import Tool
from tunesmith.models.generate import ScoreRequest
from tunesmith.models.template import ChatTemplate, PromptIds
from tunesmith.serve.hangup import while_connected
from tunesmith.serve.local_answer import ChatJob, completion, events
from tunesmith.serve.local_loop import SamplerThread, Sampling
from tunesmith.serve.wire import (
    AdapterRequest,
    ChatRequest,
    LogprobsRequest,
    Refusal,
    WireMessage,
    answer_errors_as_openai,
    model_entry,
    tools_of,
    unknown_model,
)


class Model(Protocol):
    """What the engine needs of `models.load.LoadedModel`."""

    @property
    def template(self) -> ChatTemplate:
        """How it is spoken to."""
        ...

    @property
    def context(self) -> int:
        """Longest sequence in tokens."""
        ...

    @property
    def weights_hash(self) -> str:
        """What adapters are bound to."""
        ...


def create_engine_app(
    model: Model,
    sampler: Sampling,
    *,
    name: str,
    key: str,
    on_crash: Callable[[], None] | None = None,
) -> FastAPI:
    """The app of one engine process. The engine thread runs while the app's lifespan does.

    Args:
        name: what the base is called; adapters are called by their own names.
        key: the bearer key that every request has to show.
        on_crash: called in the engine thread when the sampler raised.
    """
    thread = SamplerThread(sampler, on_crash=on_crash)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        thread.start()
        yield
        await asyncio.to_thread(thread.close)

    def authorize(request: HttpRequest) -> None:
        shown = request.headers.get("authorization", "")
        if not secrets.compare_digest(shown.encode(), f"Bearer {key}".encode()):
            raise Refusal("Incorrect API key provided.", status=401, code="invalid_api_key")

    app = FastAPI(
        title="tunesmith engine",
        lifespan=lifespan,
        dependencies=[Depends(authorize)],
        openapi_url=None,
    )
    answer_errors_as_openai(app)
    routes = _Routes(model, sampler, thread, name)
    app.add_api_route("/health", routes.health, methods=["GET"])
    app.add_api_route("/v1/models", routes.models, methods=["GET"])
    for path, endpoint in (
        ("/v1/chat/completions", routes.chat),
        ("/v1/logprobs", routes.logprobs),
        ("/v1/adapters", routes.add_adapter),
    ):
        app.add_api_route(path, endpoint, methods=["POST"], response_model=None)
    app.add_api_route("/v1/adapters/{name:path}", routes.remove_adapter, methods=["DELETE"])
    return app


class _Routes:
    def __init__(self, model: Model, sampler: Sampling, thread: SamplerThread, name: str) -> None:
        self._model, self._sampler, self._thread, self._name = model, sampler, thread, name
        self._template, self._started = model.template, int(time.time())

    async def health(self) -> dict[str, Any]:
        return {
            "status": "ok",
            "model": self._name,
            "weights_hash": self._model.weights_hash,
            "context": self._model.context,
            "adapters": list(self._sampler.adapters),
        }

    async def models(self) -> dict[str, Any]:
        names = (self._name, *self._sampler.adapters)
        entries = [model_entry(name, self._started) for name in names]
        return {"object": "list", "data": entries}

    async def chat(self, body: ChatRequest, request: HttpRequest) -> Response:
        job = self._accept(body)
        if body.stream:
            stream = events(job, self._template, self._thread)
            headers = {"cache-control": "no-store"}
            return StreamingResponse(stream, media_type="text/event-stream", headers=headers)
        answer = await while_connected(request, completion(job, self._template, self._thread))
        return Response(status_code=499) if answer is None else JSONResponse(answer)

    async def logprobs(self, body: LogprobsRequest) -> dict[str, Any]:
        adapter = self._adapter(body.model)
        answer = self._template.answer(body.answer.message())
        prompt = self._prompt(body.messages, tools_of(body.tools), room=len(answer))
        request = ScoreRequest(prompt.prefix, prompt.prompt, answer, adapter)
        return {
            "tokens": [self._template.decode([token]) for token in answer],
            "token_ids": list(answer),
            "logprobs": await self._thread.score(request),
            "prompt_token_ids": list(prompt.ids),
        }

    async def add_adapter(self, body: AdapterRequest) -> dict[str, Any]:
        if body.name == self._name:
            raise Refusal(f"'{body.name}' is the name of the base.", param="name")
        folder = Path(body.path)
        await self._thread.change_adapter(
            body.name, lambda: self._sampler.add_adapter(body.name, folder)
        )
        return model_entry(body.name, int(time.time()))

    async def remove_adapter(self, name: str) -> dict[str, Any]:
        if name not in self._sampler.adapters:
            raise unknown_model(name)
        await self._thread.change_adapter(name, lambda: self._sampler.remove_adapter(name))
        return {"id": name, "object": "model", "deleted": True}

    def _accept(self, body: ChatRequest) -> ChatJob:
        params, tools = body.params(), body.offered_tools()
        adapter = self._adapter(body.model)
        prompt = self._prompt(body.messages, tools, room=1)
        room = self._model.context - len(prompt.ids)
        return ChatJob(
            model=body.model,
            prompt=prompt,
            adapter=adapter,
            params=params,
            max_tokens=min(params.max_tokens or room, room),
            choices=body.n or 1,
            tools=bool(tools),
            include_usage=body.stream_options is not None and body.stream_options.include_usage,
            fingerprint=f"fp_{self._model.weights_hash[:12]}",
        )

    def _adapter(self, model: str) -> str | None:
        if model == self._name:
            return None
        if model not in self._sampler.adapters:
            raise unknown_model(model)
        return model

    def _prompt(
        self, messages: Sequence[WireMessage], tools: Sequence[Tool], *, room: int
    ) -> PromptIds:
        """The prompt's ids, refused when fewer than `room` tokens of context are left."""
        prompt = self._template.prompt([message.message() for message in messages], tools)
        tokens, context = len(prompt.ids), self._model.context
        if tokens + room > context:
            raise Refusal(
                f"This model's maximum context length is {context} tokens. However, your messages "
                f"resulted in {tokens} tokens, and the answer needs at least {room}. "
                "Please reduce the length of the messages.",
                param="messages",
                code="context_length_exceeded",
            )
        return prompt
