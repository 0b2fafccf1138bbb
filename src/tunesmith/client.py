"""A ChatModel over any OpenAI-compatible server, on the openai package."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

import openai
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletion

from tunesmith.chat import (
    Completion,
    Message,
    SamplingParams,
    Tool,
    ToolCall,
    Usage,
    to_openai,
)
from tunesmith.errors import AdapterError, EngineError


@dataclass(frozen=True, slots=True)
class ScoredAnswer:
    """A given answer, token by token: text, id, natural-log probability; and its prompt's ids."""

    tokens: tuple[str, ...]
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    prompt_token_ids: tuple[int, ...]


def connect(
    base_url: str, key: str, *, timeout: float | None = 600.0, retries: int = 2
) -> AsyncOpenAI:
    """A connection to an endpoint; `base_url` ends in /v1. Close it with `await x.close()`.

    Args:
        timeout: seconds for a whole answer; None waits as long as the connection stands.
        retries: how often a request is sent again after 408, 409, 429, 5xx or a lost connection.
    """
    return AsyncOpenAI(base_url=base_url, api_key=key, timeout=timeout, max_retries=retries)


def connect_engine(url: str, key: str) -> AsyncOpenAI:
    """A connection to an engine process of our own.

    No proxy, no retries and no time limit: the process is on this machine and supervised, and a
    request may wait long behind others.
    """
    direct = openai.DefaultAsyncHttpxClient(trust_env=False, timeout=None)
    return AsyncOpenAI(
        base_url=f"{url}/v1", api_key=key, timeout=None, max_retries=0, http_client=direct
    )


class OpenAIChat:
    """One model of an OpenAI-compatible server.

    Args:
        client: the connection; several models may share it.
        model: the name that the server knows it by.
    """

    marks = False
    """Whether the server takes `cache_control`, which is not in OpenAI's own schema."""

    def __init__(self, client: AsyncOpenAI, model: str) -> None:
        self.model = model
        self._client = client

    async def complete(
        self, messages: Sequence[Message], params: SamplingParams, tools: Sequence[Tool] = ()
    ) -> Completion:
        """The server's answer, with the wall seconds that it took.

        Raises:
            EngineError: the server cannot be reached, refuses, or answers without text or usage.
        """
        if not self.marks:
            messages = [replace(message, cache=False) for message in messages]
        asked = _request(self.model, messages, params, tools)
        started = time.perf_counter()
        answer = await self._ask(asked)
        return self._read(answer, time.perf_counter() - started)

    async def _ask(self, asked: dict[str, Any]) -> ChatCompletion:
        try:
            return await self._client.chat.completions.create(**asked)
        except openai.OpenAIError as error:
            raise self._failed("a chat completion", error) from error

    def _read(self, answer: ChatCompletion, seconds: float) -> Completion:
        choice = answer.choices[0] if answer.choices else None
        if choice is None or answer.usage is None:
            missing = "no choice" if choice is None else "no usage"
            raise EngineError(
                f"the answer of {self.model} has {missing}", expected="OpenAI's chat completion"
            )
        if choice.finish_reason not in ("stop", "length", "tool_calls"):
            raise EngineError(
                f"the answer of {self.model} ended with {choice.finish_reason!r}",
                expected="stop, length or tool_calls",
            )
        calls = tuple(
            ToolCall(call.id, call.function.name, call.function.arguments)
            for call in choice.message.tool_calls or ()
            if call.type == "function"
        )
        return Completion(
            text=choice.message.content or "",
            finish_reason=choice.finish_reason,
            usage=Usage(answer.usage.prompt_tokens, answer.usage.completion_tokens),
            seconds=seconds,
            tool_calls=calls,
        )

    def _failed(self, what: str, error: openai.OpenAIError) -> EngineError:
        where = self._client.base_url
        if isinstance(error, openai.APIStatusError):
            found = f"{where} answered {error.status_code} to {what} of {self.model}"
            return EngineError(f"{found}: {_said(error)}")
        reason = error.__cause__ or error
        return EngineError(
            f"{where} did not answer {what} of {self.model}: {reason or type(reason).__name__}",
            remedy="Is the server running?",
        )


class EngineClient(OpenAIChat):
    """One model of an engine process, which can also score a given answer."""

    marks = True

    async def score(
        self, messages: Sequence[Message], answer: Message, tools: Sequence[Tool] = ()
    ) -> ScoredAnswer:
        """Every token of `answer` after `messages`, the end-of-turn token included.

        Raises:
            EngineError: the engine cannot be reached or refuses.
        """
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [_wire(message) for message in messages],
            "answer": _wire(answer),
        }
        if tools:
            body["tools"] = [dict(tool) for tool in tools]
        try:
            value: Any = await self._client.post("/logprobs", cast_to=object, body=body)
        except openai.OpenAIError as error:
            raise self._failed("log-probabilities", error) from error
        return ScoredAnswer(
            tuple(value["tokens"]),
            tuple(value["token_ids"]),
            tuple(value["logprobs"]),
            tuple(value["prompt_token_ids"]),
        )

    async def greedy(
        self, messages: Sequence[Message], tokens: int, tools: Sequence[Tool] = ()
    ) -> list[tuple[str, float]]:
        """The most likely answer's tokens with their natural-log probabilities.

        Raises:
            EngineError: the engine cannot be reached or refuses.
        """
        asked = _request(self.model, messages, SamplingParams(max_tokens=tokens), tools)
        try:
            answer = await self._client.chat.completions.create(**asked, logprobs=True)
        except openai.OpenAIError as error:
            raise self._failed("a chat completion", error) from error
        told = answer.choices[0].logprobs
        return [(entry.token, entry.logprob) for entry in (told and told.content) or ()]

    async def logprobs(
        self, messages: Sequence[Message], answer: Message, tools: Sequence[Tool] = ()
    ) -> list[float]:
        """Natural-log probability of each token of `answer`, the end-of-turn token included."""
        return list((await self.score(messages, answer, tools)).logprobs)

    async def text_logprobs(self, text: str | Sequence[int]) -> list[float]:
        """Natural-log probability of each token behind the first of a text, or of ids, as it stands.

        Raises:
            EngineError: the engine cannot be reached or refuses.
        """
        asked = text if isinstance(text, str) else list(text)
        try:
            answer = await self._client.completions.create(
                model=self.model, prompt=asked, max_tokens=0, echo=True, logprobs=0
            )
        except openai.OpenAIError as error:
            raise self._failed("a text's log-probabilities", error) from error
        told = answer.choices[0].logprobs
        # Nothing is before the first token: it has none.
        return list((told and told.token_logprobs) or ())[1:]


async def embed(
    client: AsyncOpenAI, model: str, rows: Sequence[Sequence[int]]
) -> list[list[float]]:
    """The vectors of texts given as a sentence encoder's token ids, in their order.

    Raises:
        EngineError: the server cannot be reached or refuses.
    """
    try:
        asked = [list(row) for row in rows]
        answer = await client.embeddings.create(model=model, input=asked)
    except openai.OpenAIError as error:
        raise EngineError(f"{model} made no vectors: {error}") from error
    return [item.embedding for item in answer.data]


async def add_adapter(client: AsyncOpenAI, name: str, folder: str) -> None:
    """Load a LoRA folder into an engine process under a name.

    Raises:
        AdapterError: the adapter does not belong to the engine's weights, or is incomplete.
        EngineError: the engine cannot be reached.
    """
    try:
        await client.post("/adapters", cast_to=object, body={"name": name, "path": folder})
    except openai.UnprocessableEntityError as error:
        raise AdapterError(_said(error)) from None
    except openai.OpenAIError as error:
        raise EngineError(f"the engine did not load the adapter {name}: {error}") from error


async def remove_adapter(client: AsyncOpenAI, name: str) -> None:
    """Let an engine process forget an adapter; one that it does not have is fine.

    Raises:
        EngineError: the engine cannot be reached.
    """
    try:
        await client.delete(f"/adapters/{quote(name)}", cast_to=object)
    except openai.NotFoundError:
        return
    except openai.OpenAIError as error:
        raise EngineError(f"the engine did not drop the adapter {name}: {error}") from error


def _request(
    model: str, messages: Sequence[Message], params: SamplingParams, tools: Sequence[Tool]
) -> dict[str, Any]:
    """The body of a request; what is at its default is left out, so any server takes it."""
    asked: dict[str, Any] = {
        "model": model,
        "messages": [_wire(message) for message in messages],
        "temperature": params.temperature,
    }
    if params.top_p != 1.0:
        asked["top_p"] = params.top_p
    if params.max_tokens is not None:
        asked["max_tokens"] = params.max_tokens
    if params.stop:
        asked["stop"] = list(params.stop)
    if params.seed is not None:
        asked["seed"] = params.seed
    for name in ("frequency_penalty", "presence_penalty"):
        if getattr(params, name):
            asked[name] = getattr(params, name)
    if tools:
        asked["tools"] = [dict(tool) for tool in tools]
    return asked


def _wire(message: Message) -> dict[str, Any]:
    return to_openai(replace(message, weight=None))


def _said(error: openai.APIStatusError) -> str:
    """The server's own words."""
    body = error.body
    if isinstance(body, dict) and isinstance(body.get("message"), str):
        return body["message"]
    return error.response.text[:300] or error.message
