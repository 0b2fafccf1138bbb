from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

TUNED = "ft:base:me:run:1"


def user(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


@pytest.mark.parametrize(("model", "said"), [("base", "né 🙂"), (TUNED, f"{TUNED}: né 🙂")])
def test_the_base_and_a_registered_model_answer(api: Any, model: str, said: str) -> None:
    async def test(client: AsyncOpenAI) -> None:
        answer = await client.chat.completions.create(model=model, messages=user("né 🙂"))
        assert answer.choices[0].message.content == said
        assert answer.model == model
        stream = await client.chat.completions.create(
            model=model, messages=user("né 🙂"), stream=True
        )
        deltas = [chunk.choices[0].delta.content async for chunk in stream]
        assert "".join(delta or "" for delta in deltas) == said
        assert len(deltas) > len(said)

    api(test)


def test_requests_are_answered_together(api: Any) -> None:
    async def test(client: AsyncOpenAI) -> None:
        asked = [
            client.chat.completions.create(model=model, messages=user(f"row {row}"))
            for row in range(20)
            for model in ("base", TUNED)
        ]
        answers = await asyncio.gather(*asked)
        texts = [answer.choices[0].message.content for answer in answers]
        assert texts[:4] == ["row 0", f"{TUNED}: row 0", "row 1", f"{TUNED}: row 1"]

    api(test)


@pytest.mark.parametrize("stream", [False, True])
def test_errors_of_the_engine_pass_as_they_are(api: Any, stream: bool) -> None:
    async def test(client: AsyncOpenAI) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(
                model="base", messages=user("x" * 600), stream=stream
            )
        assert caught.value.code == "context_length_exceeded"
        with pytest.raises(openai.NotFoundError) as unknown:
            await client.chat.completions.create(model="no", messages=user("x"), stream=stream)
        assert unknown.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError, match="no token 258"):
            await client.chat.completions.create(
                model="base", messages=user("x"), logit_bias={"258": 1}, stream=stream
            )

    api(test)


@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_that_breaks_off_is_an_error_and_is_started_again(
    api: Any, chatting: Any, stream: bool
) -> None:
    async def test(client: AsyncOpenAI) -> None:
        async def loop() -> None:
            said: Any = await client.chat.completions.create(
                model="base", messages=user("loop"), stream=stream, max_tokens=400
            )
            if stream:
                async for _ in said:
                    pass

        asked = asyncio.create_task(loop())
        await asyncio.sleep(0.2)
        os.kill(chatting.engine._process.pid, signal.SIGKILL)
        with pytest.raises(openai.APIError, match="broke off"):
            await asked
        answers = await asyncio.gather(
            client.chat.completions.create(model=TUNED, messages=user("again")),
            client.chat.completions.create(model="base", messages=user("again")),
        )
        texts = [answer.choices[0].message.content for answer in answers]
        assert texts == [f"{TUNED}: again", "again"]

    api(test)


def test_a_client_that_hangs_up_is_heard_by_the_engine(api: Any) -> None:
    async def test(client: AsyncOpenAI) -> None:
        # 40 endless answers fill the 32 slots, so that one more waits until they are let go.
        tasks = [
            asyncio.create_task(
                client.chat.completions.create(
                    model="base", messages=user("loop"), n=20, stream=stream
                )
            )
            for stream in (False, True)
        ]
        await asyncio.sleep(0.2)
        stream: Any = await tasks[1]
        await stream.close()
        tasks[0].cancel()
        async with asyncio.timeout(5):
            await client.chat.completions.create(model="base", messages=user("next"))

    api(test)


def test_log_probabilities_of_a_given_answer(api: Any) -> None:
    async def test(client: AsyncOpenAI) -> None:
        body = {
            "model": TUNED,
            "messages": user("x"),
            "answer": {"role": "assistant", "content": "ab"},
        }
        scored: Any = await client.post("/logprobs", cast_to=object, body=body)
        assert scored["logprobs"] == [0.0, -0.5, -1.0]

    api(test)
