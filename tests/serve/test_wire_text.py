from __future__ import annotations

from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from tunesmith.chat import SamplingParams
from tunesmith.serve.wire import answer_errors_as_openai
from tunesmith.serve.wire_text import CompletionRequest


@pytest.mark.parametrize(
    ("prompt", "read"),
    [
        ("a", ("a",)),
        ("", ("",)),
        (["a", "b"], ("a", "b")),
        ([1, 2], ((1, 2),)),
        ([[1], [2, 3]], ((1,), (2, 3))),
    ],
)
def test_a_prompt_has_four_forms(prompt: object, read: object) -> None:
    assert CompletionRequest.model_validate({"model": "m", "prompt": prompt}).prompts() == read


def test_defaults_are_openais() -> None:
    params = CompletionRequest(model="m", prompt="x").params()
    assert params == SamplingParams(temperature=1.0, max_tokens=16)
    assert not params.logprobs
    assert CompletionRequest(model="m", prompt="x", logprobs=0).params().logprobs


@pytest.mark.parametrize(
    ("change", "said", "param"),
    [
        ({"prompt": []}, "should be a string", "prompt"),
        ({"prompt": [1, "a"]}, "should be a string", "prompt"),
        ({"prompt": [True]}, "should be a string", "prompt"),
        ({"prompt": [[-1]]}, "should be a string", "prompt"),
        ({"prompt": None}, "should be a string", "prompt"),
        ({"suffix": "end"}, "not supported", "suffix"),
        ({"best_of": 3}, "equals 'n'", "best_of"),
        ({"logprobs": 6}, "less than or equal to 5", "logprobs"),
        ({"logprobs": True}, "valid integer", "logprobs"),
        ({"prompt": ["a"] * 65, "n": 2}, "at most 128 answers", "prompt"),
        ({"stream_options": {}}, "needs 'stream'", "stream_options"),
        ({"messages": []}, "Unrecognized", "messages"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(
    change: dict[str, Any], said: str, param: str
) -> None:
    app = FastAPI()
    answer_errors_as_openai(app)

    @app.post("/completions")
    async def complete(body: CompletionRequest) -> str:
        return body.model

    answer = TestClient(app).post("/completions", json={"model": "m", "prompt": "x", **change})
    assert answer.status_code == 400
    assert said in answer.json()["error"]["message"]
    assert answer.json()["error"]["param"] == param


def test_who_asks_changes_nothing() -> None:
    CompletionRequest.model_validate({"model": "m", "prompt": "x", "user": "u", "best_of": 1})
