from __future__ import annotations

import json
from typing import Any

import pytest

from tunesmith.chat import Message, ToolCall
from tunesmith.data.messages import check_dialogue, check_prompt, parse_messages, parse_tools
from tunesmith.errors import RowError

_USER = {"role": "user", "content": "hi"}
_BOT = {"role": "assistant", "content": "hello"}


def _call(arguments: Any, id: str | None = "c1") -> dict[str, Any]:
    call = {"id": id, "type": "function", "function": {"name": "f", "arguments": arguments}}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def _parsed(*turns: Any) -> tuple[Message, ...]:
    messages = parse_messages(list(turns))
    check_dialogue(messages)
    return messages


def test_openai_turns_keep_name_weight_calls_and_ids() -> None:
    messages = _parsed(
        {"role": "developer", "content": "be kind"},
        {
            "role": "user",
            "content": [{"type": "text", "text": "a"}, {"type": "text", "value": "b"}],
        },
        _call('{"x": 1}'),
        {"role": "tool", "tool_call_id": "c1", "content": ""},
        {"role": "assistant", "content": "done", "weight": 1, "name": "Ann"},
    )
    assert messages == (
        Message("system", "be kind"),
        Message("user", "ab"),
        Message("assistant", None, tool_calls=(ToolCall("c1", "f", '{"x": 1}'),)),
        Message("tool", "", tool_call_id="c1"),
        Message("assistant", "done", "Ann", weight=1.0),
    )


def test_legacy_function_calls_are_converted() -> None:
    messages = _parsed(
        _USER,
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
        {"role": "function", "name": "f", "content": "42"},
        _BOT,
    )
    assert messages[1].tool_calls == (ToolCall("call_0", "f", "{}"),)
    assert messages[2] == Message("tool", "42", "f", tool_call_id="call_0")


def test_sharegpt_calls_and_observations_find_each_other() -> None:
    calls = json.dumps([{"name": n, "arguments": {"q": n}} for n in ("f", "g")])
    messages = _parsed(
        {"from": "human", "value": "hi"},
        {"from": "function_call", "value": calls},
        {"from": "observation", "value": "1"},
        {"from": "observation", "value": "2"},
        {"from": "gpt", "value": "done"},
    )
    assert [call.name for call in messages[1].tool_calls] == ["f", "g"]
    assert [message.tool_call_id for message in messages[2:4]] == ["call_0", "call_1"]


def test_arguments_given_as_an_object_are_written_as_text() -> None:
    assert _parsed(_USER, _call({"x": "é"}))[1].tool_calls[0].arguments == '{"x": "é"}'


@pytest.mark.parametrize(
    ("turns", "said"),
    [
        ([], "empty list"),
        ("hi", "is a text"),
        ([42], "turn 1 is 42"),
        ([{"role": "bot", "content": "x"}], "role of turn 1 is `bot`"),
        ([{"content": "x"}], "role of turn 1 is null"),
        ([{"from": "narrator", "value": "x"}], "one of system, human"),
        ([{"role": "user", "content": 42}], "content of turn 1 is 42; expected text"),
        ([{"role": "user", "content": " \n"}], "user turn 1 is empty"),
        ([{"role": "user"}], "user turn 1 is empty"),
        ([_USER, {"role": "assistant", "content": ""}], "assistant turn 2 is empty"),
        ([_USER], "no assistant turn"),
        ([_BOT], "assistant speaks first"),
        ([{"role": "system", "content": "x"}, _BOT], "assistant speaks first"),
        ([_USER, _BOT, _USER], "ends with a user turn"),
        ([_USER, {"role": "system", "content": "x"}, _BOT], "turn 2 is a system message"),
        ([_USER, {"role": "tool", "content": "x"}, _BOT], "answers no function call"),
        (
            [_USER, _call("{}"), {"role": "tool", "tool_call_id": "z", "content": "x"}, _BOT],
            "answers no function call",
        ),
        ([_USER, _call("{}"), {"role": "tool", "tool_call_id": "c1"}, _BOT], "has no content"),
        ([_USER, {**_BOT, "weight": 0}], "weight 0"),
        ([_USER, {**_BOT, "weight": "high"}], "weight of turn 2"),
        ([_USER, {**_BOT, "name": 3}], "name in turn 2"),
        ([_USER, _call(json.dumps(json.dumps({"x": 1})))], "Apply json.dumps once"),
        ([_USER, _call("x=1")], "are not JSON"),
        ([_USER, _call("[1]")], "are a list"),
        ([_USER, _call(None)], "are null"),
        ([_USER, {"role": "assistant", "tool_calls": [{"name": "f"}]}], "has no function"),
        ([_USER, {"role": "assistant", "tool_calls": {"f": 1}}], "tool_calls is an object"),
        ([{"from": "human", "value": "x"}, {"from": "function_call", "value": "f()"}], "not JSON"),
        ([{"role": "user", "content": [{"type": "image_url", "value": "x"}]}], "has an image"),
        ([{"role": "user", "content": [{"type": "audio"}]}], "a part of the type `audio`"),
        ([{"role": "user", "content": [{"type": "text"}]}], "text part in turn 1 is null"),
    ],
)
def test_a_broken_dialogue_says_what_was_found(turns: Any, said: str) -> None:
    with pytest.raises(RowError) as caught:
        check_dialogue(parse_messages(turns))
    assert said in str(caught.value)
    assert caught.value.expected


def test_a_prompt_needs_somebody_to_answer() -> None:
    with pytest.raises(RowError, match="no user turn"):
        check_prompt((Message("system", "x"),))


def test_tools_come_as_openai_has_them_bare_or_as_a_string() -> None:
    bare = {"name": "f", "parameters": {}}
    whole = {"type": "function", "function": bare}
    for given in ([whole], [bare], json.dumps([bare]), [{"function": bare}]):
        assert parse_tools(given) == (whole,)
    assert parse_tools(None) == parse_tools("") == parse_tools("[]") == ()
    for wrong in ("{", 5, [{"type": "function"}], ["f"]):
        with pytest.raises(RowError):
            parse_tools(wrong)
