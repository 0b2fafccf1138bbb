"""Answers that are held to a form, from a real (tiny, random) model over HTTP."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from tunesmith.chat import read_tool_calls
from tunesmith.models.constrain import Vocabulary
from tunesmith.models.generate import Sampler
from tunesmith.models.load import load
from tunesmith.serve.grammar import answer_grammar
from tunesmith.serve.local_http import create_engine_app
from tunesmith.serve.wire import ChatRequest
from tunesmith.testing import byte_template

SCHEMA = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["letter", "parcel"]},
        "weight": {"type": "number"},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 4}, "maxItems": 3},
    },
    "required": ["kind", "weight", "tags"],
    "additionalProperties": False,
}


def form(schema: dict[str, Any], *, strict: bool = True) -> Any:
    return {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": schema, "strict": strict},
    }


def tool(name: str, **properties: Any) -> Any:
    parameters = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


CITY = tool("weather", city={"enum": ["Köln", "Oslo"]})
SUM = tool("sum", x={"type": "integer"}, y={"$ref": "#/properties/x"})
USER: Any = [{"role": "user", "content": "x"}]


def asked(**more: Any) -> ChatRequest:
    return ChatRequest.model_validate({"model": "m", "messages": USER, **more})


def followed(vocabulary: Vocabulary, body: ChatRequest, text: str) -> bool:
    """Whether an answer to `body` may be this text and end there."""
    grammar = answer_grammar(body)
    assert grammar is not None
    place = vocabulary.compile(grammar.text, numbers=not grammar.prose).begin()
    template = byte_template()
    for token in (*template.encode(text), min(template.end_of_turn)):
        allowed = place.allowed()
        if allowed is None or not allowed[token]:
            return False
        place.take(token)
    return True


COLOGNE = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'
THREE = '<tool_call>\n{"name": "sum", "arguments": {"x": 1, "y": 2}}\n</tool_call>'
ONLY_SUM = {"type": "function", "function": {"name": "sum"}}
ONE = {"parallel_tool_calls": False}


@pytest.mark.parametrize(
    ("more", "fine", "wrong"),
    [
        (
            {"tool_choice": "required"},
            [COLOGNE, THREE, f"{COLOGNE}\n{THREE}"],
            ["", "Hi", f"Hi {THREE}", f"{THREE} Bye", THREE.replace(": 2", ":2")],
        ),
        ({"tool_choice": "required", **ONE}, [THREE], [f"{COLOGNE}\n{THREE}"]),
        ({"tool_choice": ONLY_SUM}, [THREE], [COLOGNE, f"{THREE}\n{THREE}"]),
        (
            {"response_format": {"type": "json_object"}},
            ["{}", THREE],
            ["Hi", "[]", '{"a": 1}'],
        ),
        (
            ONE,
            ["", "Hi", f"Hi {COLOGNE}"],
            [f"{COLOGNE}{THREE}", f"Hi {COLOGNE.upper()}x<tool_call>"],
        ),
        (
            {
                "tool_choice": {
                    "type": "allowed_tools",
                    "allowed_tools": {"mode": "auto", "tools": [ONLY_SUM]},
                }
            },
            ["Hi", THREE, f"{THREE} and {THREE}"],
            [COLOGNE, "<tool_call>x"],
        ),
    ],
)
def test_calls_are_written_as_they_are_read(
    more: dict[str, Any], fine: list[str], wrong: list[str]
) -> None:
    vocabulary, body = Vocabulary(byte_template(), 260), asked(tools=[CITY, SUM], **more)
    assert [text for text in fine if not followed(vocabulary, body, text)] == []
    assert [text for text in wrong if followed(vocabulary, body, text)] == []
    for text in fine:
        assert len(read_tool_calls(text).tool_calls) == text.count("<tool_call>")


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"response_format": {"type": "text"}},
        {"tools": [CITY]},
        {"tools": [CITY], "tool_choice": "none"},
        {"parallel_tool_calls": False},
    ],
)
def test_what_asks_for_no_form_is_free(more: dict[str, Any]) -> None:
    assert answer_grammar(asked(**more)) is None


def test_a_function_without_parameters_takes_none() -> None:
    now: Any = {"type": "function", "function": {"name": "now"}}
    body = asked(tools=[now], tool_choice="required")
    vocabulary = Vocabulary(byte_template(), 260)
    call = '<tool_call>\n{"name": "now", "arguments": {%s}}\n</tool_call>'
    assert followed(vocabulary, body, call % "")
    assert not followed(vocabulary, body, call % '"a": 1')


def fulfils(text: str | None) -> bool:
    said = json.loads(text or "")
    return (
        list(said) == ["kind", "weight", "tags"]
        and said["kind"] in ("letter", "parcel")
        and isinstance(said["weight"], int | float)
        and all(len(tag) <= 4 for tag in said["tags"])
        and f'{{"kind":"{said["kind"]}","weight":' in (text or "")
        and ',"tags":[' in (text or "")
    )


def test_answers_follow_a_schema_streamed_or_not_beside_others_that_are_free(
    served: Any, strictly: Any
) -> None:
    async def test(client: AsyncOpenAI) -> None:
        asked: dict[str, Any] = {"model": "base", "messages": USER, "seed": 3}
        free = await client.chat.completions.create(**asked, max_tokens=20, logprobs=True)
        held, again, stream = await asyncio.gather(
            client.chat.completions.create(
                **asked, n=3, response_format=form(SCHEMA), logprobs=True, top_logprobs=2
            ),
            client.chat.completions.create(**asked, max_tokens=20, logprobs=True),
            client.chat.completions.create(
                **asked,
                n=3,
                response_format=form(SCHEMA),
                stream=True,
                stream_options={"include_usage": True},
            ),
        )
        texts = [choice.message.content for choice in held.choices]
        assert all(fulfils(text) for text in texts)
        assert {choice.finish_reason for choice in held.choices} == {"stop"}
        assert again.choices[0].model_dump() == free.choices[0].model_dump()
        strictly(ChatCompletion, held)
        strictly(ChatCompletion, free)
        parts = ["", "", ""]
        async for chunk in stream:
            strictly(ChatCompletionChunk, chunk)
            for choice in chunk.choices:
                parts[choice.index] += choice.delta.content or ""
        assert parts == texts

    served(test)


def test_json_of_any_shape(served: Any) -> None:
    async def test(client: AsyncOpenAI) -> None:
        answer = await client.chat.completions.create(
            model="base", messages=USER, response_format={"type": "json_object"}, max_tokens=60
        )
        choice = answer.choices[0]
        assert (choice.message.content or "").startswith("{")
        if choice.finish_reason == "stop":
            assert isinstance(json.loads(choice.message.content or ""), dict)
        else:
            assert choice.finish_reason == "length"

    served(test)


def test_an_answer_that_is_cut_says_so(served: Any) -> None:
    async def test(client: AsyncOpenAI) -> None:
        answer = await client.chat.completions.create(
            model="base", messages=USER, response_format=form(SCHEMA), max_tokens=5
        )
        assert answer.choices[0].finish_reason == "length"
        assert answer.choices[0].message.content == '{"kin'

    served(test)


@pytest.mark.parametrize(
    ("asked", "said", "param"),
    [
        (
            {"response_format": form({"type": "foo"})},
            "Invalid schema for response_format 'answer': Invalid type: foo",
            "response_format",
        ),
        ({"response_format": form({"$ref": "#"})}, "NoExtension", "response_format"),
        (
            {"response_format": form({"type": "array", "uniqueItems": True})},
            "uniqueItems",
            "response_format",
        ),
        (
            {"tools": [CITY, tool("bad", a={"type": "foo"})], "tool_choice": "required"},
            "Invalid schema for function 'bad': Invalid type: foo",
            "tools[1].function.parameters",
        ),
        ({"logit_bias": {"260": 1}}, "no token 260", "logit_bias"),
        ({"store": True}, "keeps no completions", "store"),
    ],
)
def test_what_cannot_be_held_to_is_refused_by_its_name(
    served: Any, asked: dict[str, Any], said: str, param: str
) -> None:
    async def test(client: AsyncOpenAI) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(model="base", messages=USER, **asked)
        assert said in caught.value.message
        assert caught.value.param == param

    served(test)


def test_a_schema_that_is_not_strict_is_held_to_as_far_as_can_be(served: Any) -> None:
    async def test(client: AsyncOpenAI) -> None:
        schema = {"type": "array", "items": {"enum": [1, 2]}, "uniqueItems": True, "maxItems": 3}
        answer = await client.chat.completions.create(
            model="base", messages=USER, response_format=form(schema, strict=False)
        )
        assert set(json.loads(answer.choices[0].message.content or "")) <= {1, 2}

    served(test)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("choice", "names", "finish"),
    [
        ("required", {"weather", "sum"}, "tool_calls"),
        ({"type": "function", "function": {"name": "sum"}}, {"sum"}, "stop"),
        (
            {
                "type": "allowed_tools",
                "allowed_tools": {
                    "mode": "required",
                    "tools": [{"type": "function", "function": {"name": "weather"}}],
                },
            },
            {"weather"},
            "tool_calls",
        ),
    ],
)
def test_a_call_that_has_to_be_is_made_with_arguments_of_its_schema(
    served: Any, strictly: Any, choice: Any, names: set[str], finish: str, stream: bool
) -> None:
    async def test(client: AsyncOpenAI) -> None:
        asked: Any = {
            "model": "base",
            "messages": USER,
            "tools": [CITY, SUM],
            "tool_choice": choice,
            "parallel_tool_calls": False,
            "n": 4,
        }
        if stream:
            calls: dict[int, Any] = {}
            finishes: dict[int, Any] = {}
            async for chunk in await client.chat.completions.create(**asked, stream=True):
                for part in chunk.choices:
                    assert not part.delta.content
                    for call in part.delta.tool_calls or ():
                        assert part.index not in calls
                        calls[part.index] = call.function
                    finishes[part.index] = part.finish_reason or finishes.get(part.index)
            found, ends = list(calls.values()), set(finishes.values())
        else:
            answer = await client.chat.completions.create(**asked)
            strictly(ChatCompletion, answer)
            assert {len(part.message.tool_calls) for part in answer.choices} == {1}
            found = [part.message.tool_calls[0].function for part in answer.choices]
            ends = {part.finish_reason for part in answer.choices}
        assert len(found) == 4
        assert ends == {finish}
        for function in found:
            assert function.name in names
            given = json.loads(function.arguments)
            if function.name == "sum":
                assert {key: type(value) for key, value in given.items()} == {"x": int, "y": int}
            else:
                assert given["city"] in ("Köln", "Oslo")

    served(test)


def test_several_calls_at_once_are_as_many_as_end(served: Any) -> None:
    async def test(client: AsyncOpenAI) -> None:
        answer = await client.chat.completions.create(
            model="base", messages=USER, tools=[CITY], tool_choice="required", temperature=2
        )
        message = answer.choices[0].message
        assert message.tool_calls is not None
        assert 1 <= len(message.tool_calls) <= 16
        assert message.content is None
        assert len({call.id for call in message.tool_calls}) == len(message.tool_calls)

    served(test)


def test_a_strict_function_is_called_by_its_schema_or_not_at_all(served: Any) -> None:
    async def test(client: AsyncOpenAI) -> None:
        strict = {**CITY, "function": {**CITY["function"], "strict": True}}
        # Pushed towards "<", a random model opens a call sooner or later.
        answer = await client.chat.completions.create(
            model="base",
            messages=USER,
            tools=[strict],
            n=4,
            max_tokens=400,
            logit_bias={str(ord(c)): 8 for c in "<tool_call>"},
        )
        for choice in answer.choices:
            for call in choice.message.tool_calls or ():
                assert call.type == "function"
                assert json.loads(call.function.arguments)["city"] in ("Köln", "Oslo")

    served(test)


REPLY = {
    "type": "object",
    "properties": {
        "subject": {"type": "string", "maxLength": 60},
        "urgent": {"type": "boolean"},
        "weight_kg": {"type": "number"},
        "count": {"type": "integer"},
        "department": {"enum": ["parcels", "letters", "customs"]},
        "steps": {
            "type": "array",
            "items": {"$ref": "#/$defs/step"},
            "minItems": 1,
            "maxItems": 3,
        },
    },
    "required": ["subject", "urgent", "weight_kg", "count", "department", "steps"],
    "additionalProperties": False,
    "$defs": {
        "step": {
            "type": "object",
            "properties": {
                "what": {"type": "string", "maxLength": 40},
                "minutes": {"type": "integer"},
            },
            "required": ["what", "minutes"],
            "additionalProperties": False,
        }
    },
}


def valid_reply(text: str | None) -> bool:
    said = json.loads(text or "")
    return (
        list(said) == REPLY["required"]
        and isinstance(said["subject"], str)
        and isinstance(said["urgent"], bool)
        and isinstance(said["weight_kg"], int | float)
        and abs(said["weight_kg"]) < 1e17
        and type(said["count"]) is int
        and abs(said["count"]) < 1e17
        and said["department"] in ("parcels", "letters", "customs")
        and 1 <= len(said["steps"]) <= 3
        and all(isinstance(step["what"], str) for step in said["steps"])
        and all(type(step["minutes"]) is int for step in said["steps"])
    )


@pytest.mark.slow
def test_the_default_model_answers_in_the_form_of_a_schema_twenty_times_of_twenty(
    default_model: Path, fake: ModuleType
) -> None:
    model = load(default_model)
    app = create_engine_app(model, Sampler(model), name="base", key=fake.KEY)

    async def go() -> None:
        async with (
            fake.serving(app) as url,
            AsyncOpenAI(base_url=f"{url}/v1", api_key=fake.KEY, max_retries=0) as client,
        ):
            said = "My parcel of 2 kg is stuck at the border. What now? Answer in JSON."
            answer = await client.chat.completions.create(
                model="base",
                messages=[{"role": "user", "content": said}],
                response_format=form(REPLY),
                n=20,
                seed=1,
                temperature=1,
            )
            assert [choice.finish_reason for choice in answer.choices] == ["stop"] * 20
            assert all(valid_reply(choice.message.content) for choice in answer.choices)
            called = await client.chat.completions.create(
                model="base",
                messages=[{"role": "user", "content": "How is the weather in Oslo?"}],
                tools=[CITY, SUM],
                tool_choice="required",
                temperature=0,
                parallel_tool_calls=False,
            )
            calls: Any = called.choices[0].message.tool_calls
            assert calls[0].function.name in ("weather", "sum")
            assert json.loads(calls[0].function.arguments)

    asyncio.run(go())
