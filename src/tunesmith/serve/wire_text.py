"""OpenAI's older wire format: a text that is gone on with."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from tunesmith.chat import SamplingParams
from tunesmith.serve.wire import MOST_ANSWERS, Refusal, Sampled

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


class CompletionRequest(Sampled):
    """POST /v1/completions. OpenAI's default is 16 tokens."""

    prompt: Annotated[Any, AfterValidator(_readable)]
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    best_of: Annotated[int, Field(ge=1, le=20)] | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    suffix: str | None = None

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
        if len(self.prompts()) * (self.n or 1) > MOST_ANSWERS:
            raise Refusal(f"One request has at most {MOST_ANSWERS} answers.", param="prompt")
        return self

    def prompts(self) -> tuple[Prompt, ...]:
        """The prompts, each as a text or as ids."""
        return _prompts(self.prompt)

    def params(self) -> SamplingParams:
        """How to sample."""
        return self.sampling(16 if self.max_tokens is None else self.max_tokens, self.logprobs)
