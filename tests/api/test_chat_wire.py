"""The server and an engine process behind it, over plain sockets: hang-ups, refusals, records."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletion

from tunesmith.api import app as api_app
from tunesmith.api.chat import ChatRoutes, Keep
from tunesmith.api.who import Who
from tunesmith.serve.engines import Engine
from tunesmith.serve.router import Deployment, Router
from tunesmith.store import Store

FAKE = Path(__file__).parents[1] / "serve" / "fake_engine.py"
USER: Any = [{"role": "user", "content": "né 🙂"}]


@pytest.fixture(scope="module")
def fake() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fake_engine", FAKE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fake_engine"] = module
    spec.loader.exec_module(module)
    return module


Run = Callable[[Callable[[str, Engine], Awaitable[None]]], None]


@pytest.fixture
def both(fake: ModuleType, tmp_path: Path) -> Run:
    """Runs a test with the server's URL and the engine behind it."""

    def run(test: Callable[[str, Engine], Awaitable[None]]) -> None:
        async def go() -> None:
            default = Deployment("base", "base", tmp_path)
            router = Router(logs=tmp_path / "logs", command=(sys.executable, str(FAKE)))
            with Store.at(tmp_path / "home") as store:
                app = api_app.create_app(router, store, default, logs=tmp_path)
                async with fake.serving(app) as url:
                    await test(url, await router.engine(default))

        asyncio.run(go())

    return run


async def rows(engine: Engine) -> int:
    """Answers that an engine has in hand."""
    async with httpx.AsyncClient(headers={"authorization": f"Bearer {engine.key}"}) as http:
        return (await http.get(f"{engine.url}/health")).json()["rows"]


@pytest.mark.parametrize("path", ["chat/completions", "completions"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("abruptly", [False, True])
def test_a_socket_that_closes_in_the_midst_of_an_answer_frees_the_engine_at_once(
    both: Run, path: str, stream: bool, abruptly: bool
) -> None:
    async def test(url: str, engine: Engine) -> None:
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

    both(test)


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
def test_bodies_that_are_no_json_are_refused_and_the_server_goes_on(both: Run, body: bytes) -> None:
    async def test(url: str, engine: Engine) -> None:
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

    both(test)


def test_a_full_engine_says_when_to_come_again(both: Run) -> None:
    async def test(url: str, engine: Engine) -> None:
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

    both(test)


@pytest.mark.parametrize("usage", [None, False, True])
@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_that_is_to_be_stored_is_kept_whole(
    both: Run, monkeypatch: pytest.MonkeyPatch, stream: bool, usage: bool | None
) -> None:
    kept: list[tuple[dict[str, Any], dict[str, Any]]] = []

    async def put(_: Who, asked: dict[str, Any], answer: dict[str, Any]) -> None:
        kept.append((asked, answer))

    def with_keep(*args: Any, keep: Keep) -> ChatRoutes:
        return ChatRoutes(*args, keep=put)

    monkeypatch.setattr(api_app, "ChatRoutes", with_keep)
    tool: Any = {"type": "function", "function": {"name": "f"}}
    call = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'

    async def test(url: str, engine: Engine) -> None:
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
                whole = await client.chat.completions.create(
                    **{k: v for k, v in asked.items() if k not in ("store", "stream_options")},
                    **more,
                )
                request, answer = kept.pop()
                assert not kept
                assert request["metadata"] == {"k": "v"}
                assert request["messages"] == more["messages"]
                assert without_ids(answer) == without_ids(whole.to_dict(mode="json"))
                ChatCompletion.model_validate_json(json.dumps(answer), strict=True)
            with pytest.raises(openai.BadRequestError):
                await client.chat.completions.create(
                    **asked, messages=user("x" * 600), stream=stream
                )
            assert not kept

    both(test)


def user(text: str) -> Any:
    return [{"role": "user", "content": text}]


def without_ids(answer: Any) -> Any:
    """An answer less what no two have in common."""
    text = json.dumps({**answer, "id": "", "created": 0}, sort_keys=True)
    stem = answer["id"].removeprefix("chatcmpl-")
    return json.loads(text.replace(stem, ""))
