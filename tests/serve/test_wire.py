from __future__ import annotations

from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from tunesmith.chat import Message, SamplingParams, ToolCall
from tunesmith.errors import AdapterError, EngineError, RowError, TunesmithError
from tunesmith.serve.wire import ChatRequest, Refusal, WireMessage, answer_errors_as_openai

ASKED: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
NAMED = {"type": "function", "function": {"name": "f"}}


def tool(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


@pytest.fixture(scope="module")
def client() -> TestClient:
    app = FastAPI()
    answer_errors_as_openai(app)
    errors = {"row": RowError, "adapter": AdapterError, "engine": EngineError}

    @app.post("/chat")
    async def chat(body: ChatRequest) -> dict[str, Any]:
        return body.model_dump(exclude_unset=True)

    @app.get("/fail/{kind}")
    async def fail(kind: str) -> None:
        raise errors.get(kind, TunesmithError)("found this")

    return TestClient(app)


@pytest.mark.parametrize(
    ("change", "said", "param"),
    [
        ({"colour": 1}, "Unrecognized request argument supplied: colour", "colour"),
        ({"temperature": 3}, "should be less than or equal to 2, found 3", "temperature"),
        ({"temperature": "hot"}, "should be a valid number, found 'hot'", "temperature"),
        ({"n": True}, "should be a valid integer, found True", "n"),
        ({"messages": []}, "at least 1 item", "messages"),
        ({"stop": list("abcde")}, "at most 4 items", "stop"),
        ({"response_format": {"type": "xml"}}, "should be 'text'", "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "goes with", "response_format"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a b"}}},
            "should match pattern",
            "response_format.json_schema.name",
        ),
        ({"logit_bias": {"x": 1}}, "should match pattern", "logit_bias.x.[key]"),
        ({"logit_bias": {"5": 101}}, "less than or equal to 100", "logit_bias.5"),
        ({"metadata": {str(i): "" for i in range(17)}}, "at most 16 pairs", "metadata"),
        ({"metadata": {"k": "v" * 513}}, "at most 512 characters", "metadata.k"),
        ({"reasoning_effort": "high"}, "not supported", "reasoning_effort"),
        ({"presence_penalty": 2.5}, "less than or equal to 2", "presence_penalty"),
        ({"functions": [{"name": "f"}]}, "not supported", "functions"),
        ({"tool_choice": "always"}, "should be 'none', 'auto', 'required'", "tool_choice"),
        ({"tool_choice": "required"}, "needs 'tools'", "tool_choice"),
        ({"tool_choice": NAMED, "tools": [tool("other")]}, "'f' is not among", "tool_choice"),
        ({"tools": [tool("f"), tool("f")]}, "same name", "tools"),
        ({"top_logprobs": 2}, "needs 'logprobs'", "top_logprobs"),
        ({"stream_options": {}}, "needs 'stream'", "stream_options"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "say the same", "max_tokens"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "should be", "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "needs content", "messages[0]"),
        ({"messages": [{"content": "x"}]}, "Missing required parameter", "messages[0].role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "'image_url' is not supported",
            "messages[0].content",
        ),
        (
            {"messages": [{"role": "user", "content": "x", "weight": 1}]},
            "Unrecognized request argument supplied: messages[0].weight",
            "messages[0].weight",
        ),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(
    client: TestClient, change: dict[str, Any], said: str, param: str
) -> None:
    answer = client.post("/chat", json={**ASKED, **change})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert said in error["message"]
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"


def test_arguments_that_ask_for_nothing_pass_and_are_not_forwarded(client: TestClient) -> None:
    neutral = {
        "modalities": ["text"],
        "function_call": "auto",
        "prediction": {"type": "content", "content": "x"},
        "service_tier": "auto",
        "user": "someone",
    }
    assert client.post("/chat", json={**ASKED, **neutral}).json() == ASKED


@pytest.mark.parametrize(("body", "said"), [("{", "not valid JSON"), ("[]", "not a JSON object")])
def test_a_body_that_is_no_request_is_refused(client: TestClient, body: str, said: str) -> None:
    answer = client.post("/chat", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert said in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/fail/row", 400, None),
        ("/fail/adapter", 422, "adapter_refused"),
        ("/fail/engine", 503, "engine_unavailable"),
        ("/fail/other", 503, None),
        ("/nowhere", 404, None),
        ("/chat", 405, None),
    ],
)
def test_every_error_has_openais_shape(
    client: TestClient, path: str, status: int, code: str | None
) -> None:
    answer = client.get(path)
    assert answer.status_code == status
    assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
    assert answer.json()["error"]["code"] == code


def test_a_request_reads_as_our_vocabulary() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    turns = [
        {"role": "developer", "content": [{"type": "text", "text": "be "}]},
        {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None},
        {"role": "tool", "content": "3", "tool_call_id": "c"},
    ]
    body = ChatRequest.model_validate({**ASKED, "messages": turns, "stop": "x", "seed": 3})
    assert [message.message() for message in body.messages] == [
        Message("system", "be "),
        Message("assistant", None, tool_calls=(ToolCall("c", "f", "{}"),)),
        Message("tool", "3", tool_call_id="c"),
    ]
    assert body.params() == SamplingParams(temperature=1.0, stop=("x",), seed=3)


def test_a_tool_is_offered_as_it_was_written() -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    body = ChatRequest.model_validate({**ASKED, "tools": [tool]})
    assert body.offered_tools() == (tool,)
    silent = ChatRequest.model_validate({**ASKED, "tools": [tool], "tool_choice": "none"})
    assert silent.offered_tools() == ()


def test_only_tool_turns_name_a_call() -> None:
    with pytest.raises(ValueError, match="tool_call_id"):
        WireMessage.model_validate({"role": "tool", "content": "3"})


def test_what_is_asked_is_forwarded_in_the_words_it_was_asked_in() -> None:
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}
    asked = {
        **ASKED,
        "response_format": form,
        "tools": [tool("f")],
        "tool_choice": NAMED,
        "logit_bias": {"5": -100},
        "store": True,
        "metadata": {"k": "v"},
    }
    assert ChatRequest.model_validate(asked).model_dump(exclude_unset=True) == asked


def test_a_nucleus_of_nothing_is_the_likeliest_token() -> None:
    assert 0 < ChatRequest.model_validate({**ASKED, "top_p": 0}).params().top_p < 1e-6


def test_a_refusal_may_say_when_to_come_again() -> None:
    assert Refusal("later", status=429, retry_after=3).headers == {"retry-after": "3"}
