from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx2
import openai
import pytest
from openai import AsyncOpenAI

from tunesmith.chat import Completion, Message, SamplingParams, ToolCall, Usage
from tunesmith.client import EngineClient, OpenAIChat, connect, connect_engine
from tunesmith.errors import EngineError

HELLO = [Message("user", "hello", weight=1.0)]
TOOL = {"type": "function", "function": {"name": "f"}}


def answer(**changes: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": "hi", **changes.pop("message", {})}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
    body = {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{**choice, **changes.pop("choice", {})}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
    }
    return {**body, **changes}


def ask(
    status: int,
    body: Any,
    use: Callable[[EngineClient], Awaitable[Any]],
    kind: Callable[[AsyncOpenAI, str], Any] = EngineClient,
) -> tuple[dict[str, Any], Any]:
    """What the client sent to a server that answers so, and what it made of the answer."""
    sent: list[dict[str, Any]] = []

    def serve(request: httpx2.Request) -> httpx2.Response:
        sent.append(json.loads(request.content))
        return httpx2.Response(status, json=body)

    async def go() -> Any:
        http = httpx2.AsyncClient(transport=httpx2.MockTransport(serve))
        async with AsyncOpenAI(
            base_url="http://there/v1", api_key="k", max_retries=0, http_client=http
        ) as client:
            return await use(kind(client, "m"))

    result = asyncio.run(go())
    return sent[0], result


def test_defaults_are_left_out_of_the_request_and_the_answer_is_ours() -> None:
    sent, got = ask(200, answer(), lambda chat: chat.complete(HELLO, SamplingParams()))
    assert sent == {
        "model": "m",
        "messages": [{"role": "user", "content": "hello"}],
        "temperature": 0.0,
    }
    assert isinstance(got, Completion)
    assert (got.text, got.finish_reason, got.usage) == ("hi", "stop", Usage(5, 2))
    assert got.seconds > 0


def test_every_parameter_is_sent() -> None:
    wanted = {"temperature": 0.5, "top_p": 0.9, "max_tokens": 7, "stop": ["a", "b"], "seed": 3}
    wanted |= {"frequency_penalty": 0.5, "presence_penalty": -1.0}
    params = SamplingParams(**{**wanted, "stop": ("a", "b")})
    sent, _ = ask(200, answer(), lambda chat: chat.complete(HELLO, params, [TOOL]))
    assert {key: sent[key] for key in wanted} == wanted
    assert sent["tools"] == [TOOL]


@pytest.mark.parametrize(
    ("kind", "marks"), [(EngineClient, [True, False]), (OpenAIChat, [False] * 2)]
)
def test_what_is_shared_is_marked_for_an_engine_of_ours_alone(kind: Any, marks: list[bool]) -> None:
    messages = [Message("system", "be kind", cache=True), *HELLO]
    sent, _ = ask(200, answer(), lambda chat: chat.complete(messages, SamplingParams()), kind)
    assert ["cache_control" in message for message in sent["messages"]] == marks


def test_tool_calls_come_back_as_values() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    body = answer(
        message={"content": None, "tool_calls": [call]}, choice={"finish_reason": "tool_calls"}
    )
    del body["choices"][0]["message"]
    body["choices"][0]["message"] = {"role": "assistant", "content": None, "tool_calls": [call]}
    _, got = ask(200, body, lambda chat: chat.complete(HELLO, SamplingParams()))
    assert got.tool_calls == (ToolCall("c1", "f", "{}"),)
    assert (got.text, got.finish_reason) == ("", "tool_calls")


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (400, {"error": {"message": "too long", "type": "x"}}, "answered 400 .* of m: too long"),
        (500, "oops", "answered 500"),
        (200, answer(choices=[]), "no choice"),
        (200, answer(usage=None), "no usage"),
        (200, answer(choice={"finish_reason": "content_filter"}), "content_filter"),
    ],
)
def test_what_is_no_answer_is_an_error_that_says_what_was_asked(
    status: int, body: Any, said: str
) -> None:
    with pytest.raises(EngineError, match=said):
        ask(status, body, lambda chat: chat.complete(HELLO, SamplingParams()))


def test_a_server_that_is_not_there_is_named() -> None:
    async def go() -> None:
        async with connect("http://127.0.0.1:9/v1", "k", retries=0) as client:
            await OpenAIChat(client, "m").complete(HELLO, SamplingParams())

    with pytest.raises(EngineError, match=r"127\.0\.0\.1:9/v1/ did not answer"):
        asyncio.run(go())


def test_scoring_sends_the_answer_and_returns_each_token() -> None:
    body = {"tokens": ["a"], "token_ids": [1], "logprobs": [-0.5], "prompt_token_ids": [7, 8]}
    reply = Message("assistant", "a")
    sent, got = ask(200, body, lambda chat: chat.score(HELLO, reply))
    assert sent["answer"] == {"role": "assistant", "content": "a"}
    assert (got.logprobs, got.prompt_token_ids) == ((-0.5,), (7, 8))
    _, logprobs = ask(200, body, lambda chat: chat.logprobs(HELLO, reply))
    assert logprobs == [-0.5]


def test_an_engine_is_reached_without_proxy_retries_or_a_time_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")

    async def go() -> None:
        client = connect_engine("http://127.0.0.1:1", "k")
        assert client.max_retries == 0
        assert client.timeout is None
        assert not client._client._mounts
        await client.close()
        proxied = connect("http://127.0.0.1:1/v1", "k")
        assert proxied._client._mounts
        await proxied.close()

    asyncio.run(go())


def test_a_lost_connection_is_tried_again() -> None:
    calls = []

    def serve(request: httpx2.Request) -> httpx2.Response:
        calls.append(request)
        return httpx2.Response(503 if len(calls) == 1 else 200, json=answer())

    async def go() -> Completion:
        async with connect("http://there/v1", "k") as client:
            http = httpx2.AsyncClient(transport=httpx2.MockTransport(serve))
            patched = client.with_options(http_client=http)
            return await OpenAIChat(patched, "m").complete(HELLO, SamplingParams())

    assert asyncio.run(go()).text == "hi"
    assert len(calls) == 2
    assert openai.DEFAULT_MAX_RETRIES == 2
