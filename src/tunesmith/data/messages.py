"""Lists of messages, as OpenAI and as ShareGPT write them, and the rules that a dialogue keeps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, cast

from tunesmith.chat import Message, Role, Tool, ToolCall
from tunesmith.data.values import kind_of
from tunesmith.errors import RowError

_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
_SPEAKERS: dict[str, Role] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "tool": "tool",
}
MESSAGE_FIELDS = frozenset(
    [
        "role",
        "from",
        "content",
        "value",
        "name",
        "tool_calls",
        "tool_call_id",
        "function_call",
        "weight",
        "loss_weight",
    ]
)


class _Calls:
    """The function calls of a dialogue so far, for the tool turns that answer them."""

    def __init__(self) -> None:
        self._open: list[ToolCall] = []
        self._ids: set[str] = set()
        self._count = 0

    def add(self, name: Any, arguments: Any, id: Any = None) -> ToolCall:
        if not isinstance(name, str) or not name:
            raise RowError(
                f"the name of a function call is {kind_of(name)}", expected="the function's name"
            )
        call = ToolCall(
            id if isinstance(id, str) and id else f"call_{self._count}",
            name,
            _arguments(arguments, name),
        )
        self._count += 1
        self._ids.add(call.id)
        self._open.append(call)
        return call

    def answered(self, id: Any, name: Any) -> str:
        """The id of the call that a tool turn answers: the one it names, or the oldest open one."""
        fits = [call for call in self._open if id in (None, call.id) and name in (None, call.name)]
        fits = fits or [call for call in self._open if id in (None, call.id)]
        if fits:
            self._open.remove(fits[0])
            return fits[0].id
        if isinstance(id, str) and id in self._ids:
            return id
        raise RowError(
            "a tool turn answers no function call",
            expected="a call by the assistant before it, with the same id",
            remedy="Add the assistant's tool_calls, or mend tool_call_id.",
        )


def parse_messages(value: Any, name: str = "messages") -> tuple[Message, ...]:
    """Messages from a list of {"role", "content"} or of {"from", "value"}.

    Raises:
        RowError: not a list of messages, a wrong role, no text, a broken function call.
    """
    if not isinstance(value, list):
        raise RowError(f"`{name}` is {kind_of(value)}", expected="a list of messages")
    if not value:
        raise RowError(f"`{name}` is an empty list", expected="at least a user and an assistant")
    calls = _Calls()
    return tuple(_message(item, turn, calls) for turn, item in enumerate(value, 1))


def _message(item: Any, turn: int, calls: _Calls) -> Message:
    if not isinstance(item, dict):
        raise RowError(f"turn {turn} is {kind_of(item)}", expected='{"role", "content"}')
    role = _role(item, turn)
    content = _content(item.get("content", item.get("value")), turn)
    name = item.get("name")
    if name is not None and not isinstance(name, str):
        raise RowError(f"the name in turn {turn} is {kind_of(name)}", expected="a text")
    if role == "tool":
        if content is None:
            raise RowError(f"the tool turn {turn} has no content", expected="the call's result")
        return Message(role, content, name, tool_call_id=calls.answered(_call_id(item), name))
    if role != "assistant":
        if not content or content.isspace():
            raise _empty(role, turn)
        return Message(role, content, name)
    if item.get("from") == "function_call":
        return Message(role, None, tool_calls=_spoken_calls(content, calls))
    made = _tool_calls(item, calls)
    if not content or content.isspace():
        if not made:
            raise _empty(role, turn)
        content = None
    return Message(role, content, name, made, weight=_weight(item, turn))


def _role(item: dict[str, Any], turn: int) -> Role:
    table, key = (_ROLES, "role") if "role" in item else (_SPEAKERS, "from")
    said = item.get(key)
    role = table.get(said) if isinstance(said, str) else None
    if role is None:
        shown = f"`{said[:40]}`" if isinstance(said, str) else kind_of(said)
        raise RowError(
            f"the role of turn {turn} is {shown}",
            expected="one of " + ", ".join(table),
            remedy=f'Rename it under "{key}".',
        )
    return role


def _call_id(item: dict[str, Any]) -> Any:
    return item.get("tool_call_id") or None


def _empty(role: str, turn: int) -> RowError:
    return RowError(
        f"the {role} turn {turn} is empty",
        expected="text" + (" or tool_calls" if role == "assistant" else ""),
        remedy="Write the turn, or delete it.",
    )


def _content(value: Any, turn: int) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise RowError(f"the content of turn {turn} is {kind_of(value)}", expected="text")
    texts: list[str] = []
    for part in value:
        kind = part.get("type", "text") if isinstance(part, dict) else kind_of(part)
        if not isinstance(part, dict) or kind not in ("text", "input_text", "output_text"):
            if "image" in str(kind):
                raise image_refused()
            raise RowError(
                f"turn {turn} has a part of the type `{str(kind)[:40]}`",
                expected='parts of the type "text"',
            )
        text = part.get("text", part.get("value"))
        if not isinstance(text, str):
            raise RowError(f"a text part in turn {turn} is {kind_of(text)}", expected="text")
        texts.append(text)
    return "".join(texts)


def image_refused() -> RowError:
    """The refusal of a row with an image."""
    return RowError(
        "the row has an image",
        expected="text alone: a language model learns nothing from images here",
        remedy="Delete the row, or its image where the answer does not need it.",
    )


def _weight(item: dict[str, Any], turn: int) -> float | None:
    weight = item.get("weight", item.get("loss_weight"))
    if weight is None:
        return None
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight <= 1:
        raise RowError(
            f"the weight of turn {turn} is {kind_of(weight)}", expected="a number from 0 to 1"
        )
    return float(weight)


def _tool_calls(item: dict[str, Any], calls: _Calls) -> tuple[ToolCall, ...]:
    legacy = item.get("function_call")
    given = item.get("tool_calls") or ([{"function": legacy}] if legacy else [])
    if not isinstance(given, list):
        raise RowError(f"tool_calls is {kind_of(given)}", expected="a list of calls")
    made: list[ToolCall] = []
    for call in given:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(call, dict) or not isinstance(function, dict):
            raise RowError(
                "a call in tool_calls has no function",
                expected='{"id", "type": "function", "function": {"name", "arguments"}}',
            )
        made.append(calls.add(function.get("name"), function.get("arguments"), call.get("id")))
    return tuple(made)


def _spoken_calls(content: str | None, calls: _Calls) -> tuple[ToolCall, ...]:
    """The calls of a ShareGPT turn: {"name", "arguments"}, or a list of them, as JSON text."""
    try:
        value = json.loads(content or "")
    except (ValueError, RecursionError):
        value = None
    given: list[Any] = value if isinstance(value, list) else [value]
    if not given or not all(isinstance(call, dict) for call in given):
        raise RowError(
            "a function_call turn is not JSON", expected='{"name": "...", "arguments": {...}}'
        )
    return tuple(calls.add(call.get("name"), call.get("arguments")) for call in given)


def _arguments(value: Any, name: str) -> str:
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    expected = "a JSON object written as a string"
    if not isinstance(value, str):
        raise RowError(f"the arguments of `{name[:64]}` are {kind_of(value)}", expected=expected)
    try:
        decoded = json.loads(value)
    except (ValueError, RecursionError):
        raise RowError(f"the arguments of `{name[:64]}` are not JSON", expected=expected) from None
    if isinstance(decoded, str):
        raise RowError(
            f"the arguments of `{name[:64]}` are JSON encoded twice",
            expected=f"{expected}, encoded once",
            remedy="Apply json.dumps once, not twice.",
        )
    if not isinstance(decoded, dict):
        raise RowError(f"the arguments of `{name[:64]}` are {kind_of(decoded)}", expected=expected)
    return value


def parse_tools(value: Any) -> tuple[Tool, ...]:
    """Function definitions: OpenAI's, bare ones (legacy `functions`), or either as a JSON string.

    Raises:
        RowError: not a list of definitions that each have a name.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else []
        except (ValueError, RecursionError):
            raise RowError("`tools` is not JSON", expected="a list of functions") from None
    if value is None:
        return ()
    if not isinstance(value, list):
        raise RowError(f"`tools` is {kind_of(value)}", expected="a list of functions")
    tools: list[Tool] = []
    for item in value:
        tool = item if isinstance(item, dict) and "function" in item else {"function": item}
        function = tool["function"]
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise RowError(
                "a function in `tools` has no name",
                expected='{"type": "function", "function": {"name", "description", "parameters"}}',
            )
        tools.append(cast(Tool, {"type": "function", **tool}))
    return tuple(tools)


def check_prompt(messages: Sequence[Message]) -> None:
    """A prompt starts with at most one system message and has a user turn before any answer.

    Raises:
        RowError: the first rule that is broken.
    """
    for turn, message in enumerate(messages, 1):
        if message.role == "system" and turn > 1:
            raise RowError(
                f"turn {turn} is a system message",
                expected="one system message at most, and it first",
                remedy="Join it with the first one.",
            )
    spoken = next((message.role for message in messages if message.role != "system"), None)
    if spoken != "user":
        found = "there is no user turn" if spoken is None else f"the {spoken} speaks first"
        raise RowError(
            f"{found}: there is nothing to answer",
            expected="a user turn before the assistant's",
            remedy="Add what the user said, or delete the row.",
        )


def check_dialogue(messages: Sequence[Message]) -> None:
    """As `check_prompt`, and the last turn is an assistant's; some assistant turn is to be learned.

    Raises:
        RowError: the first rule that is broken.
    """
    if all(message.role != "assistant" for message in messages):
        raise RowError(
            "there is no assistant turn",
            expected="at least one, since it is what is learned",
            remedy="Add the answer, or delete the row.",
        )
    check_prompt(messages)
    last = messages[-1].role
    if last != "assistant":
        raise RowError(
            f"the dialogue ends with a {last} turn",
            expected="the assistant's answer as the last turn",
            remedy="Add the answer, or delete what follows the last answer.",
        )
    if all(message.weight == 0 for message in messages if message.role == "assistant"):
        raise RowError(
            "every assistant turn has the weight 0",
            expected="at least one that is to be learned",
            remedy="Set its weight to 1, or delete the row.",
        )
