"""OpenAI's older wire format: a text that is gone on with."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from tunesmith.chat import SamplingParams
from tunesmith.serve.wire import ABOUT_THE_CALLER, Refusal, StreamOptions, listed, nucleus
from tunesmith.serve.wire_tools import LogitBias, Wire

MOST_ANSWERS = 128
"""Of one request, over all its prompts."""

Prompt = str | tuple[int, ...]
"""A text, or the ids of one."""


def _prompts(value: object) -> tuple[Prompt, ...]:
    match value:
        case str():
            return (value,)
        case [*items] if items and all(isinstance(item, str) for item in items):
            return tuple(items)
        case [*items] if items and all(_is_id(item) for item in items):
            return (tuple(items),)
        case [*rows] if rows and all(
            isinstance(row, list) and all(_is_id(item) for item in row) for row in rows
        ):
            return tuple(tuple(row) for row in rows)
        case _:
            raise ValueError("should be a string, a list of strings, token ids or a list of these")


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _readable(value: Any) -> Any:
    _prompts(value)
    return value


class CompletionRequest(Wire):
    """POST /v1/completions. Defaults are OpenAI's: temperature 1, 16 tokens."""

    model: str
    prompt: Annotated[Any, AfterValidator(_readable)]
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_ANSWERS)] | None = None
    best_of: Annotated[int, Field(ge=1, le=20)] | None = None
    stop: Annotated[list[str], BeforeValidator(listed), Field(max_length=4)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: LogitBias | None = None
    suffix: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _leave_the_caller(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        return {name: item for name, item in value.items() if name not in ABOUT_THE_CALLER}

    @model_validator(mode="after")
    def _agree(self) -> CompletionRequest:
        if self.suffix:
            raise Refusal(
                "'suffix' is not supported: these models write on from their prompt.",
                param="suffix",
                code="unsupported_parameter",
            )
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise Refusal("'best_of' is supported where it equals 'n' only.", param="best_of")
        if self.stream_options is not None and not self.stream:
            raise Refusal("'stream_options' needs 'stream' to be true.", param="stream_options")
        if len(self.prompts()) * (self.n or 1) > MOST_ANSWERS:
            raise Refusal(f"One request has at most {MOST_ANSWERS} answers.", param="prompt")
        return self

    def prompts(self) -> tuple[Prompt, ...]:
        """The prompts, each as a text or as ids."""
        return _prompts(self.prompt)

    def params(self) -> SamplingParams:
        """How to sample."""
        return SamplingParams(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=nucleus(self.top_p),
            max_tokens=16 if self.max_tokens is None else self.max_tokens,
            stop=tuple(self.stop or ()),
            seed=self.seed,
            frequency_penalty=self.frequency_penalty or 0.0,
            presence_penalty=self.presence_penalty or 0.0,
            logprobs=self.logprobs is not None,
            top_logprobs=self.logprobs or 0,
        )
