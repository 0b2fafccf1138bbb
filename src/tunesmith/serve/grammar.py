"""What an answer may be, written as a grammar of llguidance (a dialect of Lark).

Texts are JSON without spaces, so that a small model cannot ramble in them. Calls are written as
`chat.write_tool_calls` writes them, which is how a tuned model has learned them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.chat import CALL_CLOSE, CALL_OPEN
from tunesmith.serve.wire import ChatRequest
from tunesmith.serve.wire_tools import ResponseFormat, WireTool

COMPACT: Mapping[str, object] = {"whitespace_flexible": False}
SPACED: Mapping[str, object] = {**COMPACT, "item_separator": ", ", "key_separator": ": "}
MOST_CALLS = 16
"""Parallel calls of one answer: a model that has learned nothing of them does not end by itself."""


@dataclass(frozen=True, slots=True)
class Part:
    """A schema that was sent: its grammar by itself, and what the client called it."""

    grammar: str
    title: str
    param: str


@dataclass(frozen=True, slots=True)
class AnswerGrammar:
    """A whole answer's grammar, and the schemas in it.

    `prose`: text of any kind may stand before the calls.
    """

    text: str
    parts: tuple[Part, ...]
    prose: bool = False


def answer_grammar(body: ChatRequest) -> AnswerGrammar | None:
    """What `body` holds its answers to; None leaves them free."""
    choice = body.choice()
    content = _content(body.response_format)
    tools = [] if choice.mode == "none" else list(enumerate(body.tools or ()))
    if choice.names is not None:
        tools = [(place, tool) for place, tool in tools if tool.function.name in choice.names]
    several = body.parallel_tool_calls is not False and not choice.named
    strict = any(tool.function.strict for _, tool in tools)
    held = strict or not several or choice.names is not None
    calls = [_arguments(tool, place) for place, tool in tools]
    if choice.mode == "required":
        content, prose = None, False
    elif content is not None:
        prose = False
    elif body.tools and choice.mode == "auto" and held:
        prose = True
    else:
        return None
    parts = ([content] if content else []) + calls
    text = _written(content, calls, [tool.function.name for _, tool in tools], several, prose)
    return AnswerGrammar(text, tuple(parts), prose)


def _content(form: ResponseFormat | None) -> Part | None:
    if form is None or form.type == "text":
        return None
    if form.json_schema is None:
        return Part(_json({"type": "object"}, COMPACT), "json_object", "response_format")
    schema = {"type": "object"} if form.json_schema.schema_ is None else form.json_schema.schema_
    options = {**COMPACT, "lenient": not form.json_schema.strict}
    title = f"response_format '{form.json_schema.name}'"
    return Part(_json(schema, options), title, "response_format")


def _arguments(tool: WireTool, place: int) -> Part:
    function = tool.function
    schema: dict[str, Any] = {"type": "object", **(function.parameters or {})}
    if not function.parameters:
        schema["additionalProperties"] = False
    options = {**SPACED, "lenient": not function.strict}
    param = f"tools[{place}].function.parameters"
    return Part(_json(schema, options), f"function '{function.name}'", param)


def _json(schema: Mapping[str, Any], options: Mapping[str, object]) -> str:
    return f"%json {json.dumps({**schema, 'x-guidance': options})}"


def _written(
    content: Part | None, calls: Sequence[Part], names: Sequence[str], several: bool, prose: bool
) -> str:
    lines: list[str] = []
    options: list[str] = []
    if content is not None:
        options.append("content")
        lines.append(f"content: {content.grammar}")
    if prose:
        lines += ["TEXT: /(.|\\n)*/", f"open[lazy]: TEXT {json.dumps(CALL_OPEN)}"]
        options.append(
            "TEXT" if not calls else "(open call)* TEXT" if several else "TEXT | open call"
        )
    elif calls:
        again = f' ("\\n" open call){{0,{MOST_CALLS - 1}}}' if several else ""
        lines.append(f"open: {json.dumps(CALL_OPEN)}")
        options.append(f"open call{again}")
    if calls:
        lines.append("call: " + " | ".join(f"call{place}" for place in range(len(calls))))
    for place, (part, name) in enumerate(zip(calls, names, strict=True)):
        before = f'\n{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": '
        frame = json.dumps(before), f"arguments{place}", json.dumps("}\n" + CALL_CLOSE)
        lines.append(f"call{place}: {' '.join(frame)}")
        lines.append(f"arguments{place}: {part.grammar}")
    return "\n".join([f"start: {' | '.join(options)}", *lines])
