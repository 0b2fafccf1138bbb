"""The server and an engine process behind it, over plain sockets: hang-ups, refusals, records."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletion

from tunesmith.serve.engines import Engine

USER: Any = [{"role": "user", "content": "né 🙂"}]


async def rows(engine: Engine) -> int:
    """Answers that an engine has in hand."""
    async with httpx.AsyncClient(headers={"authorization": f"Bearer {engine.key}"}) as http:
        return (await http.get(f"{engine.url}/health")).json()["rows"]


@pytest.mark.parametrize("path", ["chat/completions", "completions"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("abruptly", [False, True])
def test_a_socket_that_closes_in_the_midst_of_an_answer_frees_the_engine_at_once(
    chatting: Any, path: str, stream: bool, abruptly: bool
) -> None:
    async def test() -> None:
        url, engine = chatting.url, chatting.engine
        # The fake engine says "loop" without end, and reads the same in both kinds of prompt.
        loop = "<|im_start|>user\nloop<|im_end|>\n<|im_start|>assistant\n"
        asked: dict[str, Any] = {"model": "base", "stream": stream, "max_tokens": 450, "n": 3}
        asked |= {"messages": [{"role": "user", "content": "loop"}]} if "chat" in path else {}
        asked |= {} if "chat" in path else {"prompt": loop}
        body = json.dumps(asked).encode()
        host, port = url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        head = f"POST /v1/{path} HTTP/1.1\r\nhost: {host}:{port}\r\ncontent-length: {len(body)}"
        writer.write(f"{head}\r\ncontent-type: application/json\r\n\r\n".encode() + body)
        async with asyncio.timeout(10):
            while await rows(engine) < 3:
                await asyncio.sleep(0.005)
        if stream:
            assert b"200 OK" in await reader.readline()
            await reader.readuntil(b"data: ")
        if abruptly:
            writer.transport.abort()
        else:
            writer.close()
        closed = time.monotonic()
        async with asyncio.timeout(10):
            while await rows(engine):
                await asyncio.sleep(0.002)
        # 450 tokens would have taken a second.
        assert time.monotonic() - closed < 0.5

    asyncio.run(test())


@pytest.mark.parametrize(
    "body",
    [
        b'{"model": "base", "messages": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
        b'{"model": "base", "messages": [{"role": "user", "content": "\xff\xfe"}]}',
        b'{"model": "base", "messages": [{"role": "user", "content": "\\ud83d"}]}',
        b'{"model": "base", "temperature": NaN, "messages": []}',
        b'{"model": "base", "temperature": Infinity, "messages": []}',
        b'{"model": "base", "seed": 1e999, "messages": []}',
        b"",
        b"\x00",
    ],
)
def test_bodies_that_are_no_json_are_refused_and_the_server_goes_on(
    chatting: Any, body: bytes
) -> None:
    async def test() -> None:
        url, engine = chatting.url, chatting.engine
        headers = {"content-type": "application/json"}
        key = {"authorization": f"Bearer {engine.key}"}
        async with httpx.AsyncClient(headers=headers) as http:
            for path in ("/v1/chat/completions", "/v1/completions", "/v1/logprobs"):
                for base, extra in ((url, {}), (engine.url, key)):
                    answer = await http.post(base + path, content=body, headers=extra)
                    assert answer.status_code == 400
                    assert answer.json()["error"]["type"] == "invalid_request_error"
            fine = {"model": "base", "messages": USER}
            answer = await http.post(f"{url}/v1/chat/completions", json=fine)
            assert answer.json()["choices"][0]["message"]["content"] == "né 🙂"

    asyncio.run(test())


def test_a_full_engine_says_when_to_come_again(chatting: Any) -> None:
    async def test() -> None:
        url, engine = chatting.url, chatting.engine
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
            chats = client.chat.completions
            loop: Any = {"model": "base", "messages": [{"role": "user", "content": "loop"}]}
            # 32 slots and a line of 256.
            asked = [asyncio.create_task(chats.create(**loop, n=96)) for _ in range(3)]
            async with asyncio.timeout(10):
                while await rows(engine) < 288:
                    await asyncio.sleep(0.01)
            for stream in (False, True):
                with pytest.raises(openai.RateLimitError) as caught:
                    await chats.create(model="base", messages=USER, stream=stream)
                error = caught.value
                assert (error.code, error.type) == ("rate_limit_exceeded", "requests")
                assert 1 <= int(error.response.headers["retry-after"]) <= 60
            for task in asked:
                task.cancel()
            async with asyncio.timeout(10):
                while await rows(engine):
                    await asyncio.sleep(0.01)
            patient = client.with_options(max_retries=2)
            answer = await patient.chat.completions.create(model="base", messages=USER)
            assert answer.choices[0].message.content == "né 🙂"

    asyncio.run(test())


@pytest.mark.parametrize("usage", [None, False, True])
@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_that_is_to_be_stored_is_kept_whole(
    chatting: Any, stream: bool, usage: bool | None
) -> None:
    tool: Any = {"type": "function", "function": {"name": "f"}}
    call = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'

    async def test() -> None:
        url = chatting.url
        answers = chatting.store.answers
        asked: dict[str, Any] = {"model": "base", "store": True, "metadata": {"k": "v"}, "n": 2}
        asked |= {"logprobs": True, "seed": 4, "temperature": 0}
        if stream and usage is not None:
            asked["stream_options"] = {"include_usage": usage}
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
            for more in ({"messages": USER}, {"messages": user(call), "tools": [tool]}):
                said: Any = await client.chat.completions.create(**asked, **more, stream=stream)
                if stream:
                    chunks = [chunk async for chunk in said]
                    shown = [chunk.usage for chunk in chunks if chunk.usage]
                    assert bool(shown) == bool(usage)
                    said = chunks[0]
                whole = await client.chat.completions.create(
                    **{k: v for k, v in asked.items() if k not in ("store", "stream_options")},
                    **more,
                )
                assert answers.get("default", whole.id) is None
                found = answers.get("default", said.id)
                assert found.metadata == {"k": "v"}
                assert list(found.messages) == more["messages"]
                assert without_ids(found.body) == without_ids(whole.to_dict(mode="json"))
                noted = chatting.store.keys.log(1)[0]
                assert (noted.action, noted.subject) == ("chat.completions.create", said.id)
                ChatCompletion.model_validate_json(json.dumps(found.body), strict=True)
            before = len(answers.list("default", limit=100).rows)
            with pytest.raises(openai.BadRequestError):
                await client.chat.completions.create(
                    **asked, messages=user("x" * 600), stream=stream
                )
            assert len(answers.list("default", limit=100).rows) == before

    asyncio.run(test())


def user(text: str) -> Any:
    return [{"role": "user", "content": text}]


def without_ids(answer: Any) -> Any:
    """An answer less what no two have in common."""
    text = json.dumps({**answer, "id": "", "created": 0}, sort_keys=True)
    stem = answer["id"].removeprefix("chatcmpl-")
    return json.loads(text.replace(stem, ""))
