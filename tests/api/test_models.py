from __future__ import annotations

from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

TUNED = "ft:base:me:run:1"


def test_the_default_base_is_listed_first(api: Any) -> None:
    async def test(client: AsyncOpenAI) -> None:
        listed = [model async for model in client.models.list()]
        assert [model.id for model in listed] == ["base", TUNED]
        assert all(model.created > 1_500_000_000 for model in listed)
        assert {model.owned_by for model in listed} == {"tunesmith"}

    api(test)


def test_a_model_is_shown_by_its_name(api: Any) -> None:
    async def test(client: AsyncOpenAI) -> None:
        for name in ("base", TUNED):
            assert (await client.models.retrieve(name)).id == name
        with pytest.raises(openai.NotFoundError) as caught:
            await client.models.retrieve("unknown/model")
        assert caught.value.code == "model_not_found"

    api(test)
