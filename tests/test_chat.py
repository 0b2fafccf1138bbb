from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.chat import (
    Message,
    ParsedText,
    ToolCall,
    answer_text,
    read_tool_calls,
    to_openai,
    write_tool_calls,
)

text = st.text(st.characters(exclude_categories=["Cs"]))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)
arguments = json_values.map(lambda value: json.dumps(value, ensure_ascii=False))
names = text.filter(bool)


def calls(said: list[tuple[str, str]]) -> tuple[ToolCall, ...]:
    return tuple(ToolCall(f"call_{place}", *pair) for place, pair in enumerate(said))


@given(st.lists(st.tuples(names, arguments), min_size=1, max_size=4).map(calls))
def test_calls_are_read_as_they_were_written(made: tuple[ToolCall, ...]) -> None:
    assert read_tool_calls(write_tool_calls(made)) == ParsedText(None, made)


@pytest.mark.parametrize(
    "arguments",
    ["not json {", '"a string"', '{"text": "</tool_call>"}', '{"text": "<tool_call>"}', "[]", ""],
)
def test_odd_arguments_come_back_as_they_were(arguments: str) -> None:
    made = calls([("f", arguments), ("g", "{}")])
    assert read_tool_calls(write_tool_calls(made)).tool_calls == made


@given(st.text().filter(lambda said: "<tool_call>" not in said))
def test_text_without_calls_stays_as_it_is(said: str) -> None:
    assert read_tool_calls(said) == ParsedText(said or None)


def test_prose_and_calls_are_told_apart() -> None:
    said = 'One moment.\n<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
    parsed = read_tool_calls(said)
    assert parsed == ParsedText("One moment.", calls([("f", '{"a": 1}')]))
    assert answer_text(Message("assistant", parsed.content, tool_calls=parsed.tool_calls)) == said


@pytest.mark.parametrize(
    "said",
    [
        "<tool_call>\nno json\n</tool_call>",
        '<tool_call>{"name": "f"',
        '<tool_call>{"arguments": {}}</tool_call>',
        "<tool_call>[1]</tool_call>",
    ],
)
def test_what_does_not_parse_as_a_call_stays_text(said: str) -> None:
    assert read_tool_calls(said) == ParsedText(said)


def test_a_call_may_speak_of_the_mark_that_ends_it() -> None:
    arguments = '{"text": "write </tool_call> here"}'
    said = f'<tool_call>{{"name": "f", "arguments": {arguments}}}</tool_call> after'
    assert read_tool_calls(said) == ParsedText("after", (ToolCall("call_0", "f", arguments),))


def test_a_call_that_is_nested_beyond_reading_stays_text() -> None:
    said = '<tool_call>{"name": "f", "arguments": ' + "[" * 100_000 + "</tool_call>"
    assert read_tool_calls(said) == ParsedText(said)


def test_a_message_is_written_as_openai_does_and_nothing_more() -> None:
    assert to_openai(Message("user", "hi")) == {"role": "user", "content": "hi"}
    full = Message("assistant", None, "bot", calls([("f", "{}")]), None, 0)
    assert to_openai(full) == {
        "role": "assistant",
        "content": None,
        "name": "bot",
        "tool_calls": [
            {"id": "call_0", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        ],
        "weight": 0,
    }
    marked = to_openai(Message("user", "hi", cache=True))
    assert marked == {"role": "user", "content": "hi", "cache_control": {"type": "ephemeral"}}
    answer = Message("tool", "42", tool_call_id="call_0")
    assert to_openai(answer) == {"role": "tool", "content": "42", "tool_call_id": "call_0"}
