from __future__ import annotations

from typing import Any

from tunesmith.chat import SamplingParams
from tunesmith.models.template import PromptIds
from tunesmith.serve.local_answer import ChatJob


def job(**changes: Any) -> ChatJob:
    values: dict[str, Any] = {
        "model": "m",
        "prompt": PromptIds((1, 2), (3,)),
        "adapter": "tuned",
        "params": SamplingParams(
            temperature=0.7,
            top_p=0.9,
            seed=5,
            frequency_penalty=0.5,
            presence_penalty=-1.0,
            top_logprobs=2,
        ),
        "max_tokens": 9,
        "choices": 3,
        "tools": False,
        "include_usage": False,
        "fingerprint": "fp",
    }
    return ChatJob(**{**values, **changes})


def test_every_choice_is_a_request_with_all_that_was_asked() -> None:
    one = job()
    requests = one.requests()
    assert len({request.id for request in requests}) == 3
    assert len({request.seed for request in requests}) == 3
    assert requests[0].seed == 5
    for request in requests:
        assert (request.prefix, request.prompt, request.max_tokens) == ((1, 2), (3,), 9)
        assert (request.temperature, request.top_p, request.adapter) == (0.7, 0.9, "tuned")
        assert request.top_logprobs == 2
        assert (request.frequency_penalty, request.presence_penalty) == (0.5, -1.0)


def test_without_a_seed_no_choice_has_one() -> None:
    assert [request.seed for request in job(params=SamplingParams()).requests()] == [None] * 3


def test_answers_never_share_an_id() -> None:
    assert job().id != job().id
