"""The chat vocabulary: OpenAI's schema as frozen values, and the seam to anything that answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Role = Literal["system", "user", "assistant", "tool"]
FinishReason = Literal["stop", "length", "tool_calls"]
Tool = Mapping[str, Any]
"""A function definition as OpenAI writes it: {"type": "function", "function": {...}}."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call of a function; `arguments` is the JSON text that the model wrote."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    Attributes:
        weight: 0 keeps an assistant turn out of the loss.
        cache: other requests begin with all that stands up to here; an engine that shares prefixes
            computes it once. On the wire it is the `cache_control` of Anthropic's API.
    """

    role: Role
    content: str | None
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    weight: float | None = None
    cache: bool = False


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to sample. temperature 0 is greedy; `max_tokens` None means up to the context's end.

    The penalties are OpenAI's: what a token's logit loses for each time the answer has it, and once
    for having it at all.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logprobs: bool = False
    top_logprobs: int = 0


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens in and out of one request."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer. `seconds` is wall time as the caller saw it.

    Attributes:
        kept: it was given before and read from disk; `seconds` are those it took then.
    """

    text: str
    finish_reason: FinishReason
    usage: Usage
    seconds: float = 0.0
    tool_calls: tuple[ToolCall, ...] = ()
    kept: bool = False


class ChatModel(Protocol):
    """Anything that answers a conversation: a local engine, an endpoint, retrieval in front of one."""

    async def complete(
        self, messages: Sequence[Message], params: SamplingParams, tools: Sequence[Tool] = ()
    ) -> Completion:
        """The next turn of the conversation."""
        ...


class TextScorer(Protocol):
    """Anything that can say how likely a given answer is."""

    async def logprobs(
        self, messages: Sequence[Message], answer: Message, tools: Sequence[Tool] = ()
    ) -> list[float]:
        """Natural-log probability of each token of `answer`, the end-of-turn token included."""
        ...


@dataclass(frozen=True, slots=True)
class ParsedText:
    """What a model wrote, split into prose and calls."""

    content: str | None
    tool_calls: tuple[ToolCall, ...] = field(default=())


CALL_OPEN, CALL_CLOSE = "<tool_call>", "</tool_call>"
_DECODER = json.JSONDecoder()


def write_tool_calls(calls: Sequence[ToolCall]) -> str:
    """The calls as text, one `<tool_call>{"name", "arguments"}</tool_call>` a line (Hermes form)."""
    lines: list[str] = []
    for call in calls:
        try:
            arguments: object = json.loads(call.arguments)
        except json.JSONDecodeError:
            arguments = call.arguments
        if isinstance(arguments, str):
            # A bare string stands for the text itself, so that reading gives back what was written.
            arguments = call.arguments
        body = json.dumps({"name": call.name, "arguments": arguments}, ensure_ascii=False)
        body = body.replace(CALL_CLOSE, CALL_CLOSE.replace("/", "\\/"))
        lines.append(f"{CALL_OPEN}\n{body}\n{CALL_CLOSE}")
    return "\n".join(lines)


def read_tool_calls(text: str) -> ParsedText:
    """The inverse of `write_tool_calls`; what does not parse as a call stays text."""
    prose: list[str] = []
    calls: list[ToolCall] = []
    rest = text
    while CALL_OPEN in rest:
        before, _, after = rest.partition(CALL_OPEN)
        found = _read_call(after, len(calls))
        if found is None:
            body, closed, rest = after.partition(CALL_CLOSE)
            prose.append(before + CALL_OPEN + body + closed)
        else:
            prose.append(before)
            calls.append(found[0])
            rest = found[1]
    prose.append(rest)
    content = "".join(prose).strip() if calls else text
    return ParsedText(content or None, tuple(calls))


def _read_call(after: str, index: int) -> tuple[ToolCall, str] | None:
    """The call that a text begins with, up to its closing mark, and what follows."""
    body = after.lstrip()
    value: Any
    try:
        value, end = _DECODER.raw_decode(body)
    except (ValueError, RecursionError):
        return None
    closing = body[end:].lstrip()
    if not closing.startswith(CALL_CLOSE):
        return None
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", {})
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return ToolCall(f"call_{index}", value["name"], text), closing.removeprefix(CALL_CLOSE)


def to_openai(message: Message) -> dict[str, Any]:
    """The message as the OpenAI chat schema writes it; absent fields are left out."""
    out: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.name is not None:
        out["name"] = message.name
    if message.tool_calls:
        out["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        out["tool_call_id"] = message.tool_call_id
    if message.weight is not None:
        out["weight"] = message.weight
    if message.cache:
        out["cache_control"] = {"type": "ephemeral"}
    return out


def answer_text(message: Message) -> str:
    """What a model has to write to give this turn: its prose, then its calls."""
    parts = [message.content or "", write_tool_calls(message.tool_calls)]
    return "\n".join(part for part in parts if part)
