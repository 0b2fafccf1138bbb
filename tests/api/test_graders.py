from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import jsonschema_rs
import pytest
import yaml
from fastapi import FastAPI
from openai import AsyncOpenAI

from tunesmith.api.graders import GraderRoutes
from tunesmith.serve.wire import answer_errors_as_openai

CHECK = {
    "type": "string_check",
    "name": "same",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
    "operation": "eq",
}
SCORE = {
    "type": "score_model",
    "name": "score",
    "model": "judge",
    "input": [{"role": "user", "content": "How good is {{sample.output_text}}?"}],
}
MULTI = {
    "type": "multi",
    "name": "both",
    "graders": {"a": CHECK, "b": SCORE},
    "calculate_output": "(a + b) / 2",
}
PYTHON = {"type": "python", "name": "p", "source": "def grade(sample, item):\n    return item['n']"}


async def chat(*_: object) -> tuple[str | None, Mapping[str, int]]:
    return '{"result": 0.5}', {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}


def app(*, python_graders: bool = False) -> FastAPI:
    routes = GraderRoutes(None, lambda _: chat, python_graders=python_graders)
    app = FastAPI()
    answer_errors_as_openai(app)
    app.include_router(routes.routes())
    return app


def asked(route: str, body: object, *, python_graders: bool = False) -> httpx.Response:
    async def go() -> httpx.Response:
        transport = httpx.ASGITransport(app(python_graders=python_graders))
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            return await client.post(f"/v1/fine_tuning/alpha/graders/{route}", json=body)

    return asyncio.run(go())


@pytest.fixture
def fits(shared: Callable[..., Path]) -> Callable[[str, object], None]:
    """Holds a value to a schema of the contract."""
    contract = yaml.safe_load(shared("../contracts/openai-subset.yaml").read_text())

    def check(name: str, value: object) -> None:
        schema = {"$ref": f"#/components/schemas/{name}", "components": contract["components"]}
        jsonschema_rs.validator_for(schema).validate(value)

    return check


def test_a_run_answers_as_the_contract_says(fits: Callable[[str, object], None]) -> None:
    for grader in (CHECK, SCORE, MULTI, {**CHECK, "input": "{{item.none}}"}, PYTHON):
        body = {"grader": grader, "item": {"answer": "yes", "n": 2}, "model_sample": "yes"}
        answer = asked("run", body, python_graders=True)
        assert answer.status_code in (200, 400), answer.text
        if answer.is_success:
            fits("RunGraderResponse", answer.json())


def test_a_run_gives_reward_parts_and_tokens() -> None:
    body = {"grader": MULTI, "item": {"answer": "yes"}, "model_sample": "yes", "extra": 1}
    answer = asked("run", body).json()
    assert answer["reward"] == 0.75
    assert answer["sub_rewards"] == {"a": 1.0, "b": 0.5}
    assert answer["model_grader_token_usage_per_model"]["judge"]["total_tokens"] == 10
    metadata = answer["metadata"]
    assert (metadata["name"], metadata["type"]) == ("both", "multi")
    assert (metadata["token_usage"], metadata["sampled_model_name"]) == (10, "judge")
    assert not any(metadata["errors"].values())
    assert metadata["execution_time"] > 0


def test_a_run_without_an_item_flags_what_it_lacks() -> None:
    answer = asked("run", {"grader": CHECK, "model_sample": "yes"}).json()
    assert answer["reward"] == 0.0
    assert answer["metadata"]["errors"]["invalid_variable_error"] is True
    assert answer["metadata"]["token_usage"] is None


def test_a_grader_that_is_well_formed_comes_back(fits: Callable[[str, object], None]) -> None:
    for grader in (CHECK, SCORE, {**MULTI, "graders": SCORE, "calculate_output": "score"}):
        answer = asked("validate", {"grader": grader})
        assert answer.json() == {"grader": grader}
        fits("ValidateGraderResponse", answer.json())
    assert asked("validate", {"grader": MULTI}).json() == {"grader": MULTI}


@pytest.mark.parametrize(
    ("grader", "param"),
    [
        ({**CHECK, "operation": "is"}, "grader.operation"),
        ({**MULTI, "graders": {"a": {**CHECK, "operation": "is"}}}, "grader.graders.a.operation"),
        ({**MULTI, "calculate_output": "c"}, "grader.calculate_output"),
        (PYTHON, "grader.type"),
        ({**SCORE, "type": "label_model", "labels": ["a"], "passing_labels": []}, "grader.type"),
        ({"type": "regex"}, "grader.type"),
        ({}, "grader.type"),
    ],
)
@pytest.mark.parametrize("route", ["run", "validate"])
def test_a_grader_that_cannot_run_is_refused_with_its_field(
    route: str, grader: dict[str, Any], param: str
) -> None:
    answer = asked(route, {"grader": grader, "model_sample": "", "item": {}})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)


def test_a_body_without_its_parts_is_refused() -> None:
    assert asked("run", {"grader": CHECK}).json()["error"]["param"] == "model_sample"
    assert asked("run", {"model_sample": "x"}).json()["error"]["param"] == "grader"
    assert asked("validate", {"grader": "x"}).json()["error"]["param"] == "grader"
    odd = {"grader": CHECK, "model_sample": "x", "item": [1]}
    assert asked("run", odd).json()["error"]["param"] == "item"


def test_the_openai_package_reads_the_answers() -> None:
    async def go() -> None:
        transport = httpx.ASGITransport(app())
        async with httpx.AsyncClient(transport=transport) as http:
            client = AsyncOpenAI(api_key="k", base_url="http://here/v1", http_client=http)
            graders = client.fine_tuning.alpha.graders
            grader: Any = CHECK
            run = await graders.run(grader=grader, model_sample="yes", item={"answer": "yes"})
            assert (run.reward, run.metadata.errors.other_error) == (1.0, False)
            valid = await graders.validate(grader=grader)
            assert valid.grader is not None
            assert valid.grader.name == "same"

    asyncio.run(go())
