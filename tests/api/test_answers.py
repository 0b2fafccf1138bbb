from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest

from tunesmith.api.answers import AnswerRoutes
from tunesmith.api.who import Who
from tunesmith.settings import Settings


def answer(number: int, model: str = "base") -> dict[str, Any]:
    message = {"role": "assistant", "content": f"said {number}", "refusal": None}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
    return {
        "id": f"chatcmpl-{number}",
        "object": "chat.completion",
        "created": 1_700_000_000 + number,
        "model": model,
        "choices": [choice],
    }


MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
    {"role": "user", "content": "Again"},
]


@pytest.fixture
def kept(served: Any) -> list[str]:
    """Thirty stored completions, two of them with metadata."""
    routes = AnswerRoutes(served.store, Settings())
    for number in range(30):
        asked: dict[str, Any] = {"messages": MESSAGES}
        if number < 2:
            asked["metadata"] = {'team"': "x", "n": str(number)}
        asyncio.run(routes.keep(Who(), asked, answer(number, "ft:a" if number == 3 else "base")))
    return [f"chatcmpl-{number}" for number in range(30)]


def test_stored_completions_are_paged_to_the_end_and_filtered(
    served: Any, conforms: Any, kept: list[str]
) -> None:
    completions = served.sdk().chat.completions
    page = completions.list(limit=3)
    conforms("ChatCompletionList", page.to_dict(mode="json"))
    conforms("ChatCompletionList", completions.list(model="none").to_dict(mode="json"))
    assert [item.id for item in page] == kept
    assert [item.id for item in completions.list(order="desc")] == kept[::-1]
    assert [item.id for item in completions.list(model="ft:a")] == ["chatcmpl-3"]
    assert [item.id for item in completions.list(metadata={'team"': "x", "n": "1"})] == [kept[1]]


def test_a_stored_completion_is_read_labelled_and_deleted(
    served: Any, conforms: Any, kept: list[str]
) -> None:
    completions = served.sdk().chat.completions
    found = completions.retrieve(kept[0])
    conforms("CreateChatCompletionResponse", found.to_dict(mode="json"))
    assert found.choices[0].message.content == "said 0"
    assert found.metadata == {'team"': "x", "n": "0"}
    assert completions.update(kept[0], metadata={"new": "1"}).metadata == {"new": "1"}
    assert completions.update(kept[0], metadata=None).metadata is None
    conforms("ChatCompletionDeleted", completions.delete(kept[0]).to_dict())
    with pytest.raises(openai.NotFoundError, match=kept[0]):
        completions.retrieve(kept[0])


def test_the_messages_of_a_completion_are_paged(served: Any, kept: list[str]) -> None:
    messages = served.sdk().chat.completions.messages
    listed = list(messages.list(kept[5], limit=1))
    assert [item.id for item in listed] == [f"{kept[5]}-{n}" for n in range(3)]
    assert [item.content for item in listed] == ["Be brief.", None, "Again"]
    assert listed[1].content_parts[0].text == "Hello"
    down = messages.list(kept[5], order="desc")
    assert [item.id for item in down] == [f"{kept[5]}-{n}" for n in (2, 1, 0)]
    with pytest.raises(openai.BadRequestError, match="in this list"):
        messages.list(kept[5], after=f"{kept[4]}-0")


def test_another_projects_completions_are_as_unknown_as_none(served: Any, kept: list[str]) -> None:
    completions = served.stranger().chat.completions
    assert completions.list().data == []
    for known in (kept[0], "chatcmpl-x"):
        for call in (
            *(completions.retrieve, completions.delete, completions.messages.list),
            lambda item: completions.update(item, metadata={}),
        ):
            with pytest.raises(openai.NotFoundError, match=f"with id '{known}'"):
                call(known)
