"""The HTTP side of an engine process: OpenAI's chat completions over one sampler.

What OpenAI's wire format cannot say has routes of its own: /v1/logprobs scores a given answer,
/v1/adapters loads and drops LoRA weights beside the one copy of the base.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response

from tunesmith.chat import SamplingParams, Tool
from tunesmith.errors import RowError
from tunesmith.models.constrain import Grammar, Vocabulary
from tunesmith.models.generate import ScoreRequest, Token
from tunesmith.models.template import ChatTemplate, PromptIds
from tunesmith.serve.grammar import answer_grammar
from tunesmith.serve.hangup import EventStream, while_connected
from tunesmith.serve.line import Line
from tunesmith.serve.local_answer import ChatJob
from tunesmith.serve.local_completions import Start, TextJob
from tunesmith.serve.local_job import Generation, Job, described
from tunesmith.serve.local_loop import SamplerThread, Sampling
from tunesmith.serve.local_process import MakeApp, Spec, private_app
from tunesmith.serve.text import said
from tunesmith.serve.wire import (
    AdapterRequest,
    ChatRequest,
    LogprobsRequest,
    Refusal,
    WireMessage,
    model_entry,
    tools_of,
    unknown_model,
)
from tunesmith.serve.wire_text import CompletionRequest, Prompt
from tunesmith.serve.wire_tools import LogitBias, bias_of
from tunesmith.settings import MAX_WAITING


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
    def vocabulary(self) -> int:
        """How many tokens its logits are for."""
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
    max_waiting: int = MAX_WAITING,
    on_crash: Callable[[], None] | None = None,
) -> FastAPI:
    """The app of one engine process. The engine thread runs while the app's lifespan does.

    Args:
        name: what the base is called; adapters are called by their own names.
        key: the bearer key that every request has to show.
        max_waiting: most rows that wait for a slot; more are refused with 429.
        on_crash: called in the engine thread when the sampler raised.
    """
    thread = SamplerThread(sampler, on_crash=on_crash)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        thread.start()
        yield
        await asyncio.to_thread(thread.close)

    app = private_app(key, lifespan)
    routes = _Routes(model, sampler, thread, name, Line(sampler.max_rows, max_waiting))
    app.add_api_route("/health", routes.health, methods=["GET"])
    app.add_api_route("/v1/models", routes.models, methods=["GET"])
    for path, endpoint in (
        ("/v1/chat/completions", routes.chat),
        ("/v1/completions", routes.completions),
        ("/v1/logprobs", routes.logprobs),
        ("/v1/adapters", routes.add_adapter),
    ):
        app.add_api_route(path, endpoint, methods=["POST"], response_model=None)
    app.add_api_route("/v1/adapters/{name:path}", routes.remove_adapter, methods=["DELETE"])
    return app


def engine_app(spec: Spec, model: Model, sampler: Sampling) -> MakeApp:
    """`create_engine_app` as a spec asks for it."""
    return partial(
        create_engine_app,
        model,
        sampler,
        name=spec.name,
        key=spec.key,
        max_waiting=spec.max_waiting,
    )


class _Routes:
    def __init__(
        self, model: Model, sampler: Sampling, thread: SamplerThread, name: str, line: Line
    ) -> None:
        self._model, self._sampler, self._thread, self._name = model, sampler, thread, name
        self._line, self._vocabulary = line, Vocabulary(model.template, model.vocabulary)
        self._template, self._started = model.template, int(time.time())

    async def health(self) -> dict[str, Any]:
        return {
            "status": "ok",
            "model": self._name,
            "weights_hash": self._model.weights_hash,
            "context": self._model.context,
            "adapters": list(self._sampler.adapters),
            "rows": self._line.rows,
        }

    async def models(self) -> dict[str, Any]:
        names = (self._name, *self._sampler.adapters)
        entries = [model_entry(name, self._started) for name in names]
        return {"object": "list", "data": entries}

    async def chat(self, body: ChatRequest, request: HttpRequest) -> Response:
        if body.store:
            raise Refusal("An engine keeps no completions: 'store' is the server's.", param="store")
        job = await self._chat_job(body)
        return await self._answered(job, request, stream=bool(body.stream))

    async def completions(self, body: CompletionRequest, request: HttpRequest) -> Response:
        job = await self._text_job(body)
        return await self._answered(job, request, stream=bool(body.stream), spaced=True)

    async def logprobs(self, body: LogprobsRequest) -> dict[str, Any]:
        adapter = self._adapter(body.model)
        answer = self._template.answer(body.answer.message())
        prompt = self._prompt(body.messages, tools_of(body.tools), room=len(answer))
        read = await self._read(ScoreRequest(prompt.prefix, prompt.prompt, answer, adapter))
        return {
            "tokens": [self._template.decode([token]) for token in answer],
            "token_ids": list(answer),
            "logprobs": [token.logprob for token in read],
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

    async def _answered(
        self, job: Job, request: HttpRequest, *, stream: bool, spaced: bool = False
    ) -> Response:
        generation = Generation(job, self._template, self._thread, self._line, spaced=spaced)
        if stream:
            return EventStream(job.events(generation), generation.close)
        try:
            answer = await while_connected(request, job.whole(generation))
        finally:
            await generation.close()
        return Response(status_code=499) if answer is None else JSONResponse(answer)

    async def _read(self, request: ScoreRequest) -> list[Token]:
        self._line.enter(1)
        try:
            return await self._thread.read(request)
        finally:
            self._line.leave()

    async def _chat_job(self, body: ChatRequest) -> ChatJob:
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
            named=body.choice().named,
            include_usage=body.include_usage,
            fingerprint=self._fingerprint,
            bias=self._bias(body.logit_bias),
            grammar=await self._grammar(body),
        )

    async def _text_job(self, body: CompletionRequest) -> TextJob:
        params, adapter = body.params(), self._adapter(body.model)
        wanted = params.max_tokens or 0
        prompts = [self._ids(prompt, room=min(wanted, 1)) for prompt in body.prompts()]
        starts = [Start(ids, min(wanted, self._model.context - len(ids))) for ids in prompts]
        if body.echo:
            starts = [await self._echoed(start, params, adapter) for start in starts]
        return TextJob(
            model=body.model,
            adapter=adapter,
            params=params,
            choices=body.n or 1,
            include_usage=body.include_usage,
            fingerprint=self._fingerprint,
            bias=self._bias(body.logit_bias),
            starts=tuple(starts),
        )

    @property
    def _fingerprint(self) -> str:
        return f"fp_{self._model.weights_hash[:12]}"

    async def _echoed(self, start: Start, params: SamplingParams, adapter: str | None) -> Start:
        """The prompt with its text and, where they are asked for, its log-probabilities."""
        entries: list[dict[str, Any] | None] = [None] * len(start.ids)
        if params.logprobs:
            first, rest = start.ids[:1], start.ids[1:]
            asked = ScoreRequest((), first, rest, adapter, params.top_logprobs)
            read = await self._read(asked) if rest else []
            # Nothing is before the first token, so nothing says how likely it is.
            entries = [{"token": self._template.decode(first), "logprob": None}]
            entries += [described(self._template, token) for token in read]
        return replace(start, echo=said(self._template.decode, start.ids, entries))

    async def _grammar(self, body: ChatRequest) -> Grammar | None:
        """What the answer is held to, refused with the name of the schema that is at fault."""
        asked = answer_grammar(body)
        if asked is None:
            return None
        compile = self._vocabulary.compile
        try:
            return await asyncio.to_thread(compile, asked.text, numbers=not asked.prose)
        except RowError as error:
            whole = error
        for part in asked.parts:
            try:
                await asyncio.to_thread(compile, f"start: {part.grammar}")
            except RowError as error:
                raise Refusal(
                    f"Invalid schema for {part.title}: {error}.", param=part.param
                ) from None
        raise Refusal(f"The schemas are too much together: {whole}.", param=asked.parts[0].param)

    def _bias(self, bias: LogitBias | None) -> tuple[tuple[int, float], ...]:
        pairs = bias_of(bias)
        self._check_ids([token for token, _ in pairs], "logit_bias")
        return pairs

    def _check_ids(self, ids: Sequence[int], param: str) -> None:
        largest = max(ids, default=0)
        if largest >= self._model.vocabulary:
            raise Refusal(
                f"This model has no token {largest}; its ids are below {self._model.vocabulary}.",
                param=param,
            )

    def _ids(self, prompt: Prompt, *, room: int) -> tuple[int, ...]:
        """Ids of a text without a template, with the token that the tokenizer begins texts with."""
        if isinstance(prompt, str):
            ids = tuple(self._template.tokenizer.encode(prompt).ids)
        else:
            self._check_ids(prompt, "prompt")
            ids = prompt
        if not ids:
            raise Refusal(
                "The prompt is empty, and there is nothing to go on from.", param="prompt"
            )
        self._check_length(len(ids), room, "prompt")
        return ids

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
        self._check_length(len(prompt.ids), room, "messages")
        return prompt

    def _check_length(self, tokens: int, room: int, param: str) -> None:
        context = self._model.context
        if tokens + room > context:
            raise Refusal(
                f"This model's maximum context length is {context} tokens. However, your {param} "
                f"resulted in {tokens} tokens, and the answer needs at least {room}. "
                f"Please reduce the length of the {param}.",
                param=param,
                code="context_length_exceeded",
            )
