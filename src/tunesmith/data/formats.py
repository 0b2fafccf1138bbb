"""Rows to examples, for each format."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from tunesmith.chat import Message, Role, Tool
from tunesmith.data.examples import (
    Conversation,
    Document,
    Example,
    Preference,
    Source,
    UnpairedPreference,
)
from tunesmith.data.layout import DOCUMENT_COLUMNS, REQUIRED, TITLES, Layout, truth_of
from tunesmith.data.messages import (
    check_dialogue,
    check_prompt,
    image_refused,
    parse_messages,
    parse_tools,
)
from tunesmith.data.values import kind_of
from tunesmith.errors import RowError

_Cells = Mapping[str, Any]


def parse_example(row: Mapping[str, Any], layout: Layout | None, source: Source) -> Example:
    """One row as an example.

    Raises:
        RowError: what is wrong with it; found, expected, what to do.
    """
    if row.get("image") or row.get("images"):
        raise image_refused()
    if layout is None:
        raise _unknown(row)
    cells = {
        name: value for name, key in layout.columns.items() if (value := row.get(key)) is not None
    }
    missing = [name for name in REQUIRED[layout.format] if name not in cells]
    if missing:
        column = layout.columns.get(missing[0], missing[0])
        raise RowError(
            f"the row has no `{column}`",
            expected=f"{TITLES[layout.format]} as in the other rows",
            remedy="Fill it in, or delete the row.",
        )
    example = _PARSERS[layout.format](cells, source)
    named = document_of(row)
    if not named or not isinstance(example, Conversation):
        return example
    return replace(example, document=named)


def document_of(row: Mapping[str, Any]) -> str:
    """The id of the document that a row names; empty where it names none."""
    for name in DOCUMENT_COLUMNS:
        value = row.get(name)
        if isinstance(value, str | int) and not isinstance(value, bool) and str(value).strip():
            return str(value).strip()
    return ""


def with_answer(row: Mapping[str, Any], answers: Mapping[str, str]) -> Mapping[str, Any]:
    """A question without an answer, with the answer that stands in the document it names."""
    answer = answers.get(document_of(row)) if "question" in row else None
    return {**row, "answer": answer} if answer and not row.get("answer") else row


def _unknown(row: Mapping[str, Any]) -> RowError:
    names = ", ".join(f"`{key[:40]}`" for key in list(row)[:8])
    return RowError(
        f"the columns {names} fit no known format",
        expected="`messages`, or `prompt` and `completion`, or `text` and `label`, or another format",
        remedy="Say which columns hold them, as in --map prompt=COLUMN --map completion=COLUMN; "
        "a dialogue in one text has to be cut into messages with roles first.",
    )


def _text(cells: _Cells, name: str) -> str:
    value = cells.get(name)
    if not isinstance(value, str):
        raise RowError(
            f"`{name}` is {kind_of(value)}", expected="text", remedy="Write it in quotes."
        )
    if not value or value.isspace():
        raise RowError(
            f"`{name}` is empty", expected="text", remedy="Fill it in, or delete the row."
        )
    return value


def _optional(cells: _Cells, name: str) -> str:
    value = cells.get(name, "")
    return _text(cells, name) if not isinstance(value, str) or value.strip() else ""


def _system(cells: _Cells) -> tuple[Message, ...]:
    text = _optional(cells, "system")
    return (Message("system", text),) if text else ()


def _turns(cells: _Cells, name: str, role: Role) -> tuple[Message, ...]:
    """A text, one message or a list of messages, as turns."""
    value = cells.get(name)
    if isinstance(value, list):
        return parse_messages(value, name)
    if isinstance(value, dict) and ("content" in value or "value" in value):
        return parse_messages([value], name)
    return (Message(role, _text(cells, name)),)


def _prompt(cells: _Cells) -> tuple[tuple[Message, ...], tuple[Tool, ...]]:
    """The prompt with the tools it may call: a text, messages, or OpenAI's {"messages", "tools"}."""
    value = cells.get("prompt")
    if isinstance(value, dict) and "messages" in value:
        return parse_messages(value["messages"]), parse_tools(value.get("tools"))
    messages = _system(cells) + _turns(cells, "prompt", "user")
    return messages, parse_tools(cells.get("tools"))


def _conversation(
    messages: tuple[Message, ...], source: Source, tools: tuple[Tool, ...] = ()
) -> Conversation:
    check_dialogue(messages)
    return Conversation(messages, source, tools)


def _chat(cells: _Cells, source: Source) -> Example:
    tools = parse_tools(cells.get("tools"))
    return _conversation(parse_messages(cells["messages"]), source, tools)


def _sharegpt(cells: _Cells, source: Source) -> Example:
    messages = _system(cells) + parse_messages(cells["conversations"], "conversations")
    return _conversation(messages, source, parse_tools(cells.get("tools")))


def _alpaca(cells: _Cells, source: Source) -> Example:
    turns = list(_system(cells))
    history = cells.get("history") or []
    if not isinstance(history, list) or any(
        not isinstance(pair, list) or len(pair) != 2 for pair in history
    ):
        raise RowError(f"`history` is {kind_of(history)}", expected="a list of [user, assistant]")
    for asked, answered in history:
        turns.append(Message("user", _text({"history": asked}, "history")))
        turns.append(Message("assistant", _text({"history": answered}, "history")))
    more = _optional(cells, "input")
    asked = _text(cells, "instruction") + (f"\n\n{more}" if more else "")
    turns += [Message("user", asked), Message("assistant", _text(cells, "output"))]
    return _conversation(tuple(turns), source)


def _question_answer(cells: _Cells, source: Source) -> Example:
    context = _optional(cells, "context")
    asked = (f"{context}\n\n" if context else "") + _text(cells, "question")
    turns = (Message("user", asked), Message("assistant", _text(cells, "answer")))
    return _conversation(_system(cells) + turns, source)


def _prompt_completion(cells: _Cells, source: Source) -> Example:
    prompt, tools = _prompt(cells)
    return _conversation(prompt + _turns(cells, "completion", "assistant"), source, tools)


def _text_label(cells: _Cells, source: Source) -> Example:
    label = cells["label"]
    if isinstance(label, int | float):
        label = json.dumps(label)
    turns = (
        Message("user", _text(cells, "text")),
        Message("assistant", _text({"label": label}, "label")),
    )
    return _conversation(_system(cells) + turns, source)


def _preference(cells: _Cells, source: Source) -> Example:
    chosen = _turns(cells, "chosen", "assistant")
    rejected = _turns(cells, "rejected", "assistant")
    tools = parse_tools(cells.get("tools"))
    if chosen[0].role != "assistant":
        shared = 0
        while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
            shared += 1
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    elif "prompt" in cells:
        prompt, tools = _prompt(cells)
    else:
        raise RowError(
            "a preference row has no prompt",
            expected="`prompt`, or whole dialogues in `chosen` and `rejected`",
        )
    if chosen == rejected:
        raise RowError(
            "the chosen and the rejected answer are the same",
            expected="a better and a worse answer",
            remedy="Delete the row.",
        )
    for answer in (chosen, rejected):
        if answer[0].role != "assistant":
            raise RowError(
                "the chosen and the rejected dialogue part at a turn that is no answer",
                expected="the same turns up to the assistant's",
            )
        check_dialogue(prompt + answer)
    check_prompt(prompt)
    return Preference(prompt, chosen, rejected, source, tools)


def _unpaired(cells: _Cells, source: Source) -> Example:
    label = truth_of(cells["label"])
    if label is None:
        raise RowError(f"`label` is {kind_of(cells['label'])}", expected="true or false")
    if "messages" in cells:
        messages, tools = parse_messages(cells["messages"]), parse_tools(cells.get("tools"))
        prompt, completion = messages[:-1], messages[-1:]
    else:
        prompt, tools = _prompt(cells)
        completion = _turns(cells, "completion", "assistant")
    check_dialogue(prompt + completion)
    return UnpairedPreference(prompt, completion, label, source, tools)


def _document(cells: _Cells, source: Source) -> Example:
    return Document(_text(cells, "text"), source, ends=cells.get("ends", True))


_PARSERS: dict[str, Callable[[_Cells, Source], Example]] = {
    "preference": _preference,
    "unpaired-preference": _unpaired,
    "chat": _chat,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
    "question-answer": _question_answer,
    "prompt-completion": _prompt_completion,
    "text-label": _text_label,
    "text": _document,
}
