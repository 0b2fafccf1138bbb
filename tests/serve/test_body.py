from __future__ import annotations

import json

import pytest
from fastapi import FastAPI, HTTPException
from fastapi.testclient import TestClient

from tunesmith.serve.body import DEEPEST, read_json
from tunesmith.serve.wire import ChatRequest, answer_errors_as_openai


@pytest.mark.parametrize(
    "value", [{"a": [1, 2.5, None, "né 🙂", {"b": True}]}, "x", [], json.loads("[" * 90 + "]" * 90)]
)
def test_what_is_json_is_read(value: object) -> None:
    assert read_json(json.dumps(value).encode()) == value
    assert read_json(json.dumps(value, ensure_ascii=False).encode()) == value


REFUSED = {
    "deep": (b"[" * 10_000 + b"]" * 10_000, "nested more than"),
    "deeper than is read": (b"[" * (DEEPEST + 2) + b"]" * (DEEPEST + 2), "nested more than"),
    "deep objects": (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "nested more than"),
    "not closed": (b'{"a":' * 10_000, "nested more than"),
    "utf-8": (b'{"a": "\xff"}', "not UTF-8: byte 7"),
    "utf-16": ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
    "raw surrogate": (b'"\xed\xa0\x80"', "not UTF-8"),
    "surrogate": (b'{"a": "\\ud800 x"}', "half a character"),
    "surrogate in a key": (b'{"\\udfff": 1}', "half a character"),
    "NUL": (b'{"a": ["\\u0000"]}', "NUL"),
    "NUL in a key": (b'{"a\\u0000": 1}', "NUL"),
    "nan": (b"[NaN]", "out of range: NaN is no JSON"),
    "infinity": (b"[-Infinity]", "out of range"),
    "overflow": (b"[1e999]", "out of range"),
    "digits": (b"[" + b"1" * 5000 + b"]", "out of range"),
    "half": (b'{"a": ', "not valid JSON"),
    "empty": (b"", "not valid JSON"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_json_is_refused_and_said(name: str) -> None:
    body, said = REFUSED[name]
    with pytest.raises(HTTPException) as caught:
        read_json(body)
    assert caught.value.status_code == 400
    assert said in caught.value.detail


@pytest.mark.parametrize("name", REFUSED)
def test_a_body_that_is_no_json_gets_a_clean_answer(name: str) -> None:
    app = FastAPI()
    answer_errors_as_openai(app)

    @app.post("/chat")
    async def chat(body: ChatRequest) -> str:
        return body.model

    client = TestClient(app)
    answer = client.post(
        "/chat", content=REFUSED[name][0], headers={"content-type": "application/json"}
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"
