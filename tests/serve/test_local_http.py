from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from tunesmith.serve.local_http import create_engine_app

Test = Callable[[AsyncOpenAI, Any], Awaitable[None]]
TOOL: Any = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'


@pytest.fixture
def engine(fake: ModuleType) -> Callable[..., None]:
    """Runs a test against the engine app behind uvicorn, with the unmodified openai package."""

    def run(test: Test, *, context: int = 512, max_rows: int = 32) -> None:
        template = fake.byte_template(context)
        sampler = fake.FakeSampler(template, max_rows)
        app = create_engine_app(fake.FakeModel(template), sampler, name="base", key=fake.KEY)

        async def go() -> None:
            async with (
                fake.serving(app) as url,
                AsyncOpenAI(base_url=f"{url}/v1", api_key=fake.KEY, max_retries=0) as client,
            ):
                await test(client, sampler)

        asyncio.run(go())

    return run


def user(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def test_a_chat_completion_has_text_usage_and_a_reason_to_end(engine: Any) -> None:
    async def test(client: AsyncOpenAI, sampler: Any) -> None:
        answer = await client.chat.completions.create(model="base", messages=user("hé 🙂"))
        assert answer.choices[0].message.content == "hé 🙂"
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage is not None
        # 8 bytes and the end of turn; the prompt frames them with two headers.
        assert answer.usage.completion_tokens == 9
        assert answer.usage.prompt_tokens == len("user\n") + 8 + 3 + len("assistant\n") + 1
        assert sampler.seen[0].temperature == 1.0

    engine(test)


def test_a_stream_never_holds_half_a_character(engine: Any) -> None:
    async def test(client: AsyncOpenAI, _: Any) -> None:
        stream = await client.chat.completions.create(
            model="base",
            messages=user("né 🙂👍"),
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
        deltas = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
        assert [delta for delta in deltas if delta] == ["n", "é", " ", "🙂", "👍"]
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == 13
        assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
        assert len({chunk.id for chunk in chunks}) == 1

    engine(test)


@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings_end_the_answer_and_are_not_sent(engine: Any, stream: bool) -> None:
    async def test(client: AsyncOpenAI, sampler: Any) -> None:
        sampler._answer = lambda _: list(sampler.template.encode("one END two, and so on"))
        said: Any = await client.chat.completions.create(
            model="base", messages=user("x"), stop=["END", "never"], stream=stream
        )
        if stream:
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in said])
        else:
            text = said.choices[0].message.content
            assert said.choices[0].finish_reason == "stop"
            assert said.usage.completion_tokens == len("one END")
        assert text == "one "
        while not sampler.cancelled:
            await asyncio.sleep(0.005)
        assert sampler.cancelled == [sampler.seen[0].id]

    engine(test)


def test_n_answers_have_seeds_of_their_own_and_the_first_is_that_of_n_1(engine: Any) -> None:
    async def test(client: AsyncOpenAI, _: Any) -> None:
        async def texts(n: int) -> list[str | None]:
            answer = await client.chat.completions.create(
                model="base", messages=user("x"), n=n, seed=7
            )
            assert [choice.index for choice in answer.choices] == list(range(n))
            return [choice.message.content for choice in answer.choices]

        three = await texts(3)
        assert len(set(three)) == 3
        assert three[0] == "x#7"
        assert three == await texts(3)
        assert three[:1] == await texts(1)

    engine(test)


def test_log_probabilities_cover_the_text_with_bytes_where_they_can_be_told(engine: Any) -> None:
    async def test(client: AsyncOpenAI, _: Any) -> None:
        answer = await client.chat.completions.create(
            model="base", messages=user("aé"), logprobs=True, top_logprobs=2
        )
        content = answer.choices[0].logprobs
        assert content is not None
        assert content.content is not None
        assert [entry.bytes for entry in content.content] == [[97], None, None]
        assert content.content[0].token == "a"
        assert [top.logprob for top in content.content[0].top_logprobs] == [-0.25, -3.0]

    engine(test)


def test_max_tokens_ends_with_length(engine: Any) -> None:
    async def test(client: AsyncOpenAI, _: Any) -> None:
        answer = await client.chat.completions.create(
            model="base", messages=user("abcdef"), max_tokens=3, temperature=0
        )
        assert answer.choices[0].message.content == "abc"
        assert answer.choices[0].finish_reason == "length"

    engine(test)


def test_an_answer_without_max_tokens_ends_at_the_end_of_the_context(engine: Any) -> None:
    async def test(client: AsyncOpenAI, _: Any) -> None:
        answer = await client.chat.completions.create(model="base", messages=user("loop"))
        assert answer.usage is not None
        assert answer.usage.total_tokens == 64
        assert answer.choices[0].finish_reason == "length"

    engine(test, context=64)


def test_a_prompt_longer_than_the_context_is_refused_with_its_length(engine: Any) -> None:
    async def test(client: AsyncOpenAI, _: Any) -> None:
        with pytest.raises(openai.BadRequestError, match=r"length is 64 tokens.* 119 ") as caught:
            await client.chat.completions.create(model="base", messages=user("x" * 100))
        assert caught.value.code == "context_length_exceeded"
        assert caught.value.param == "messages"

    engine(test, context=64)


def test_tool_calls_are_read_from_the_text(engine: Any) -> None:
    async def test(client: AsyncOpenAI, _: Any) -> None:
        asked: Any = {"model": "base", "messages": user(CALL), "tools": [TOOL]}
        answer = await client.chat.completions.create(**asked)
        choice = answer.choices[0]
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content is None
        call: Any = choice.message.tool_calls
        assert json.loads(call[0].function.arguments) == {"city": "Köln"}
        chunks = [c async for c in await client.chat.completions.create(**asked, stream=True)]
        streamed = [c.choices[0].delta.tool_calls for c in chunks if c.choices[0].delta.tool_calls]
        assert streamed[0][0].function.name == "weather"
        assert chunks[-1].choices[0].finish_reason == "tool_calls"
        plain = await client.chat.completions.create(**asked, tool_choice="none")
        assert plain.choices[0].message.content == CALL

    engine(test)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up_frees_its_slot(engine: Any, stream: bool) -> None:
    async def test(client: AsyncOpenAI, sampler: Any) -> None:
        endless = asyncio.create_task(
            client.chat.completions.create(model="base", messages=user("loop"), stream=stream)
        )
        while not sampler.seen:
            await asyncio.sleep(0.005)
        answer = asyncio.create_task(
            client.chat.completions.create(model="base", messages=user("next"))
        )
        if stream:
            events = await endless
            await anext(events)
            await events.close()
        endless.cancel()
        async with asyncio.timeout(5):
            assert (await answer).choices[0].message.content == "next"
        assert sampler.cancelled == [sampler.seen[0].id]

    engine(test, context=100_000, max_rows=1)


def test_adapters_come_and_go_beside_the_base(engine: Any, tmp_path: Path) -> None:
    async def test(client: AsyncOpenAI, _: Any) -> None:
        name = "ft:base:me:run:1"
        body = {"name": name, "path": str(tmp_path)}
        await client.post("/adapters", cast_to=object, body=body)
        assert [model.id async for model in client.models.list()] == ["base", name]
        answer = await client.chat.completions.create(model=name, messages=user("x"))
        assert answer.choices[0].message.content == f"{name}: x"
        await client.delete(f"/adapters/{name}", cast_to=object)
        with pytest.raises(openai.NotFoundError, match="does not exist"):
            await client.chat.completions.create(model=name, messages=user("x"))

    engine(test)


def test_an_adapter_that_does_not_fit_is_refused(engine: Any, tmp_path: Path) -> None:
    async def test(client: AsyncOpenAI, _: Any) -> None:
        body = {"name": "x", "path": str(tmp_path / "no")}
        with pytest.raises(openai.UnprocessableEntityError, match="is no adapter"):
            await client.post("/adapters", cast_to=object, body=body)

    engine(test)


def test_an_answer_by_an_adapter_that_is_removed_ends_with_an_error(
    engine: Any, tmp_path: Path
) -> None:
    async def test(client: AsyncOpenAI, sampler: Any) -> None:
        sampler.adapters = ("tuned",)
        sampler._answer = lambda request: [97] * 2
        stream = await client.chat.completions.create(
            model="tuned", messages=user("x"), stream=True
        )
        await anext(stream)
        await client.delete("/adapters/tuned", cast_to=object)
        with pytest.raises(openai.APIError, match="removed or replaced"):
            async for _ in stream:
                pass

    engine(test, context=100_000)


def test_log_probabilities_of_a_given_answer_come_token_by_token(engine: Any) -> None:
    async def test(client: AsyncOpenAI, _: Any) -> None:
        body = {
            "model": "base",
            "messages": user("x"),
            "answer": {"role": "assistant", "content": "ab"},
        }
        scored: Any = await client.post("/logprobs", cast_to=object, body=body)
        assert scored["tokens"] == ["a", "b", ""]
        assert scored["logprobs"] == [0.0, -0.5, -1.0]
        assert scored["token_ids"][-1] == 257

    engine(test)


def test_trap_1_the_ids_that_are_served_are_those_of_the_template(
    engine: Any, fake: ModuleType
) -> None:
    from tunesmith.chat import Message

    async def test(client: AsyncOpenAI, sampler: Any) -> None:
        await client.chat.completions.create(model="base", messages=user("né"))
        ids = fake.byte_template(512).prompt([Message("user", "né")])
        assert sampler.seen[0].prefix + sampler.seen[0].prompt == ids.ids

    engine(test)


def test_without_the_key_nothing_is_answered(engine: Any) -> None:
    async def test(client: AsyncOpenAI, _: Any) -> None:
        stranger = client.with_options(api_key="wrong")
        for route in ("/adapters", "/logprobs", "/chat/completions"):
            with pytest.raises(openai.AuthenticationError):
                await stranger.post(route, cast_to=object, body={})
        with pytest.raises(openai.AuthenticationError):
            await stranger.models.list()

    engine(test)
