"""OpenAI's chat wire format: requests as values, refusals as bodies.

The engine process and the API server in front of it read requests with the same types, so both
refuse the same things in the same words. Nothing is ignored silently: an argument that OpenAI
knows and we do not honour is accepted only at the value that means "leave it".
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self, cast

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BeforeValidator, Field, model_validator
from starlette.exceptions import HTTPException

from tunesmith.chat import Message, SamplingParams, Tool, ToolCall
from tunesmith.errors import AdapterError, EngineError, RowError, TunesmithError
from tunesmith.serve.body import StrictRoute
from tunesmith.serve.wire_tools import (
    Choice,
    LogitBias,
    Metadata,
    ResponseFormat,
    ToolChoice,
    Wire,
    WireTool,
    read_choice,
    tools_of,
)

MOST_ANSWERS = 128
"""Of one request, over all its prompts."""

ABOUT_THE_CALLER = frozenset(
    {"user", "safety_identifier", "prompt_cache_key", "prompt_cache_options"}
    | {"prompt_cache_retention", "prediction"}
)
"""Arguments that say who asks or hint at what would be fast; they change no answer."""

NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "audio": (),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"],),
    "moderation": (),
    "reasoning_effort": ("none", "minimal"),
    "service_tier": ("auto", "default", "flex"),
    "verbosity": ("medium",),
    "web_search_options": (),
}
"""Arguments that are not honoured, with the values that ask for nothing. null is one for each."""


class Refusal(TunesmithError):
    """A request that is answered with an error body of OpenAI's shape."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.param, self.code = status, kind, param, code
        self.headers = {} if retry_after is None else {"retry-after": str(retry_after)}

    def body(self) -> dict[str, Any]:
        """The error body."""
        return error_body(self.found, kind=self.kind, param=self.param, code=self.code)


def listed(value: object) -> object:
    """One stop string as a list of one."""
    return [value] if isinstance(value, str) else value


def _joined(value: object) -> object:
    """The text of content parts; what is not text is refused."""
    if not isinstance(value, list):
        return value
    texts: list[str] = []
    for part in cast("list[Any]", value):
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        if kind != "text" or not isinstance(part.get("text"), str):
            raise ValueError(f"content of type {kind!r} is not supported here; send text")
        texts.append(part["text"])
    return "".join(texts)


Text = Annotated[str, BeforeValidator(_joined)]


class WireFunction(Wire):
    """A called function."""

    name: str
    arguments: str


class WireToolCall(Wire):
    """One tool call of an assistant turn."""

    id: str
    type: Literal["function"] = "function"
    function: WireFunction


class WireCacheControl(Wire):
    """A mark behind what other requests begin with, as Anthropic's API has it."""

    type: Literal["ephemeral"]


class WireMessage(Wire):
    """One turn as OpenAI writes it."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | None = None
    name: str | None = None
    tool_calls: list[WireToolCall] | None = None
    tool_call_id: str | None = None
    cache_control: WireCacheControl | None = None
    refusal: None = None
    annotations: None = None
    audio: None = None
    function_call: None = None

    @model_validator(mode="after")
    def _whole(self) -> WireMessage:
        if self.content is None and not (self.role == "assistant" and self.tool_calls):
            raise ValueError(f"a {self.role} message needs content")
        if self.tool_calls and self.role != "assistant":
            raise ValueError(f"a {self.role} message cannot call tools")
        if (self.role == "tool") != (self.tool_call_id is not None):
            raise ValueError("tool messages, and only they, name their tool_call_id")
        return self

    def message(self) -> Message:
        """The turn in tunesmith's vocabulary; `developer` is what OpenAI now calls `system`."""
        return Message(
            "system" if self.role == "developer" else self.role,
            self.content,
            name=self.name,
            tool_calls=tuple(
                ToolCall(call.id, call.function.name, call.function.arguments)
                for call in self.tool_calls or ()
            ),
            tool_call_id=self.tool_call_id,
            cache=self.cache_control is not None,
        )


class StreamOptions(Wire):
    """What a stream carries beside the text."""

    include_usage: bool = False
    include_obfuscation: bool | None = None


class Sampled(Wire):
    """What chats and completions have in common. Defaults are OpenAI's: temperature 1, one answer."""

    model: str
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    stop: Annotated[list[str], BeforeValidator(listed), Field(max_length=4)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_ANSWERS)] | None = None
    logit_bias: LogitBias | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _leave_the_caller(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        return {name: item for name, item in value.items() if name not in ABOUT_THE_CALLER}

    @model_validator(mode="after")
    def _stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise Refusal("'stream_options' needs 'stream' to be true.", param="stream_options")
        return self

    @property
    def include_usage(self) -> bool:
        """Whether the last event of a stream tells the tokens."""
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling(self, max_tokens: int | None, logprobs: int | None) -> SamplingParams:
        """How to sample; `logprobs` is how many of the likeliest tokens are told, None for none."""
        return SamplingParams(
            temperature=1.0 if self.temperature is None else self.temperature,
            # 0 leaves the likeliest token.
            top_p=1.0 if self.top_p is None else max(self.top_p, 1e-9),
            max_tokens=max_tokens,
            stop=tuple(self.stop or ()),
            seed=self.seed,
            frequency_penalty=self.frequency_penalty or 0.0,
            presence_penalty=self.presence_penalty or 0.0,
            logprobs=logprobs is not None,
            top_logprobs=logprobs or 0,
        )


class ChatRequest(Sampled):
    """POST /v1/chat/completions."""

    messages: Annotated[list[WireMessage], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: list[WireTool] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    store: bool | None = None
    metadata: Metadata | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        body = cast("dict[str, Any]", value)
        for name in body.keys() & NEUTRAL.keys():
            if body[name] is not None and body[name] not in NEUTRAL[name]:
                raise Refusal(
                    f"'{name}' is not supported by this server.",
                    param=name,
                    code="unsupported_parameter",
                )
        return {name: item for name, item in body.items() if name not in NEUTRAL}

    @model_validator(mode="after")
    def _agree(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise Refusal("'top_logprobs' needs 'logprobs' to be true.", param="top_logprobs")
        if None not in (self.max_tokens, self.max_completion_tokens):
            raise Refusal(
                "'max_tokens' and 'max_completion_tokens' say the same; send one.",
                param="max_tokens",
            )
        self._agree_on_tools()
        return self

    def _agree_on_tools(self) -> None:
        choice, offered = self.choice(), {tool.function.name for tool in self.tools or ()}
        if len(offered) < len(self.tools or ()):
            raise Refusal("Two tools have the same name.", param="tools")
        if choice.mode == "required" and not offered:
            raise Refusal("'tool_choice' needs 'tools' to choose from.", param="tool_choice")
        unknown = sorted((choice.names or set()) - offered)
        if unknown:
            raise Refusal(f"'{unknown[0]}' is not among the 'tools'.", param="tool_choice")

    def choice(self) -> Choice:
        """Which of the tools may and have to be called."""
        return read_choice(self.tool_choice)

    def params(self) -> SamplingParams:
        """How to sample."""
        logprobs = self.top_logprobs or 0 if self.logprobs else None
        return self.sampling(self.max_completion_tokens or self.max_tokens, logprobs)

    def offered_tools(self) -> tuple[Tool, ...]:
        """The tools that the model may call in this answer."""
        return () if self.choice().mode == "none" else tools_of(self.tools)


class LogprobsRequest(Wire):
    """POST /v1/logprobs: how likely is `answer` after `messages`?"""

    model: str
    messages: Annotated[list[WireMessage], Field(min_length=1)]
    answer: WireMessage
    tools: list[WireTool] | None = None


class AdapterRequest(Wire):
    """POST /v1/adapters: load a LoRA folder under a name."""

    name: Annotated[str, Field(min_length=1)]
    path: str


def model_entry(name: str, created: int) -> dict[str, Any]:
    """One entry of /v1/models; `created` in seconds since 1970."""
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "tunesmith",
        "shutdown_date": None,
    }


def error_body(
    message: str, *, kind: str, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """OpenAI's error body."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def event(body: Mapping[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(body, ensure_ascii=False, separators=(',', ':'))}\n\n"


def too_many(said: str, wait: float) -> Refusal:
    """429: the same request is welcome after so many seconds."""
    return Refusal(
        said,
        status=429,
        kind="requests",
        code="rate_limit_exceeded",
        retry_after=max(1, math.ceil(wait)),
    )


def unknown_model(name: str) -> Refusal:
    """The refusal of a name that nothing answers to."""
    return Refusal(
        f"The model '{name}' does not exist. GET /v1/models lists those that do.",
        status=404,
        param="model",
        code="model_not_found",
    )


def answer_errors_as_openai(app: FastAPI) -> None:
    """Make every error of `app` a body of OpenAI's shape, and refuse bodies that are not JSON.

    For routes that are added afterwards.
    """
    app.router.route_class = StrictRoute

    async def answer(_: Request, error: Exception) -> JSONResponse:
        refusal = as_refusal(error)
        return JSONResponse(refusal.body(), refusal.status, refusal.headers)

    for kind in (TunesmithError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, answer)


def as_refusal(error: Exception) -> Refusal:
    """An error as it is answered."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, RequestValidationError):
        return _invalid(error)
    if isinstance(error, HTTPException):
        return Refusal(f"{error.detail}.", status=error.status_code)
    if isinstance(error, RowError):
        return Refusal(str(error), param="messages")
    if isinstance(error, AdapterError):
        return Refusal(str(error), status=422, code="adapter_refused")
    code = "engine_unavailable" if isinstance(error, EngineError) else None
    return Refusal(str(error), status=503, kind="server_error", code=code)


def _invalid(error: RequestValidationError) -> Refusal:
    """The first finding as one sentence, with the argument it is about."""
    first = error.errors()[0]
    param = _path(first["loc"][1:])
    if first["type"] == "json_invalid":
        return Refusal("The body of the request is not valid JSON.")
    if not param:
        return Refusal("The body of the request is not a JSON object.")
    if first["type"] == "extra_forbidden":
        return Refusal(
            f"Unrecognized request argument supplied: {param}",
            param=param,
            code="unknown_parameter",
        )
    if first["type"] == "missing":
        return Refusal(
            f"Missing required parameter: '{param}'.",
            param=param,
            code="missing_required_parameter",
        )
    said = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
    found = first.get("input")
    shown = f", found {found!r:.100}" if isinstance(found, str | int | float | None) else ""
    return Refusal(
        f"Invalid value for '{param}': {said}{shown}.", param=param, code="invalid_value"
    )


def _path(parts: Sequence[str | int]) -> str:
    """messages[0].role out of ("messages", 0, "role")."""
    out = ""
    for part in parts:
        out += f"[{part}]" if isinstance(part, int) else f".{part}" if out else part
    return out
