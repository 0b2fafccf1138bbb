from __future__ import annotations

from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from openai.types import Completion

from tunesmith.client import EngineClient


def test_a_text_is_gone_on_with(served: Any, strictly: Any) -> None:
    async def test(client: AsyncOpenAI) -> None:
        asked: dict[str, Any] = {"model": "base", "temperature": 0, "max_tokens": 6}
        one = await client.completions.create(**asked, prompt="né", logprobs=2)
        strictly(Completion, one)
        assert one.object == "text_completion"
        assert one.id.startswith("cmpl-")
        assert one.usage is not None
        assert (one.usage.prompt_tokens, one.usage.completion_tokens) == (3, 6)
        said = one.choices[0].logprobs
        assert said is not None
        assert len(said.tokens or []) == len(said.token_logprobs or []) == 6
        assert all(1 <= len(top) <= 3 for top in said.top_logprobs or [])
        assert (said.text_offset or [1])[0] == 0
        several = await client.completions.create(**asked, prompt=[[1, 2], [3]], n=2)
        assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
        texts = [choice.text for choice in several.choices]
        assert texts[0] == texts[1]
        alone = await client.completions.create(**asked, prompt=[3])
        assert texts[2] == alone.choices[0].text

    served(test)


def test_a_text_that_is_said_again_carries_the_log_probabilities_of_its_tokens(
    served: Any,
) -> None:
    async def test(client: AsyncOpenAI) -> None:
        asked: dict[str, Any] = {"model": "base", "prompt": "abc", "echo": True, "logprobs": 1}
        said = await client.completions.create(**asked, max_tokens=0)
        choice = said.choices[0]
        assert (choice.text, choice.finish_reason) == ("abc", "length")
        assert choice.logprobs is not None
        assert choice.logprobs.tokens == ["a", "b", "c"]
        assert choice.logprobs.text_offset == [0, 1, 2]
        values: Any = choice.logprobs.token_logprobs
        assert values[0] is None
        assert all(value < 0 for value in values[1:])
        assert choice.logprobs.top_logprobs is not None
        assert choice.logprobs.top_logprobs[1]["b"] == values[1]
        longer = await client.completions.create(**asked, max_tokens=3, temperature=0)
        assert longer.choices[0].text.startswith("abc")
        assert longer.choices[0].logprobs is not None
        more: Any = longer.choices[0].logprobs.token_logprobs
        assert more[1:3] == pytest.approx(values[1:], abs=1e-6)
        assert len(more) == 6
        ours = await EngineClient(client, "base").text_logprobs("abc")
        assert ours == pytest.approx(values[1:])

    served(test)


def test_a_streamed_text_is_the_same_text(served: Any) -> None:
    async def test(client: AsyncOpenAI) -> None:
        asked: dict[str, Any] = {
            "model": "base",
            "prompt": ["ab", "c"],
            "seed": 5,
            "echo": True,
            "logprobs": 0,
        }
        whole = await client.completions.create(**asked)
        texts, offsets = ["", ""], [[], []]
        stream = await client.completions.create(
            **asked, stream=True, stream_options={"include_usage": True}
        )
        usage = None
        async for chunk in stream:
            usage = chunk.usage or usage
            for choice in chunk.choices:
                texts[choice.index] += choice.text
                if choice.logprobs:
                    offsets[choice.index] += choice.logprobs.text_offset or []
        assert texts == [choice.text for choice in whole.choices]
        assert usage == whole.usage
        for index, choice in enumerate(whole.choices):
            assert choice.logprobs is not None
            assert choice.logprobs.text_offset == offsets[index]

    served(test)


@pytest.mark.parametrize(
    ("asked", "said", "param"),
    [
        ({"prompt": ""}, "prompt is empty", "prompt"),
        ({"prompt": [260]}, "no token 260", "prompt"),
        ({"prompt": "x" * 3000}, "resulted in 3000 tokens", "prompt"),
    ],
)
def test_a_text_that_cannot_be_gone_on_with_is_refused(
    served: Any, asked: dict[str, Any], said: str, param: str
) -> None:
    async def test(client: AsyncOpenAI) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.completions.create(model="base", **asked)
        assert said in caught.value.message
        assert caught.value.param == param

    served(test)
