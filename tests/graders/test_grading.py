from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from tunesmith.errors import EngineError, GraderError
from tunesmith.graders.confined import require_confinement
from tunesmith.graders.grading import Graded, Sample, Services, grade, require
from tunesmith.graders.spec import parse_grader

INPUT = {"name": "n", "input": "{{sample.output_text}}", "reference": "{{item.answer}}"}
ASKED = {"name": "n", "model": "judge", "input": [{"role": "user", "content": "{{item.answer}}"}]}
SCORE = {"type": "score_model", **ASKED}
LABEL = {"type": "label_model", **ASKED, "labels": ["good", "bad"], "passing_labels": ["good"]}


def check(operation: str = "eq", **fields: object) -> dict[str, Any]:
    return {"type": "string_check", **INPUT, "operation": operation, **fields}


def python(body: str) -> dict[str, Any]:
    return {"type": "python", "name": "p", "source": f"def grade(sample, item):\n    {body}"}


def multi(formula: str, **graders: object) -> dict[str, Any]:
    return {"type": "multi", "name": "m", "graders": graders, "calculate_output": formula}


def answers(text: str | None) -> Services:
    async def chat(
        model: str, messages: Sequence[Mapping[str, Any]], arguments: Mapping[str, Any]
    ) -> tuple[str | None, Mapping[str, int]]:
        assert (model, len(messages)) == ("judge", 1)
        return text, {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}

    return Services(chat=chat, python_graders=True)


NOTHING = Services(python_graders=True)


def run(value: object, text: str = "yes", services: Services = NOTHING, **item: object) -> Graded:
    sample = Sample(text)
    return asyncio.run(grade(parse_grader(value), sample, {"answer": "yes", **item}, services))


@pytest.mark.parametrize(
    ("operation", "text", "reward"),
    [
        ("eq", "yes", 1.0),
        ("eq", "Yes", 0.0),
        ("ne", "yes", 0.0),
        ("ne", "no", 1.0),
        ("like", "oh yes!", 1.0),
        ("like", "oh Yes!", 0.0),
        ("ilike", "oh Yes!", 1.0),
        ("ilike", "no", 0.0),
    ],
)
def test_a_string_is_checked(operation: str, text: str, reward: float) -> None:
    graded = run(check(operation), text)
    assert (graded.reward, graded.errors) == (reward, {})
    assert graded.seconds > 0


def test_a_missing_variable_and_output_that_is_no_json_are_told_apart() -> None:
    missing = run(check(input="{{item.none}}"))
    assert missing.errors == {"invalid_variable_error": True}
    assert missing.reasons == ("there is no item.none",)
    plain = run(check(input="{{sample.output_json.x}}"))
    assert (plain.reward, plain.errors) == (0.0, {"sample_parse_error": True})
    assert run(check(input="{{sample.output_json.x}}"), '{"x": "yes"}').reward == 1.0
    called = Sample("", [{"function": {"name": "yes"}}])
    tools = parse_grader(check(input="{{sample.output_tools[0].function.name}}"))
    assert asyncio.run(grade(tools, called, {"answer": "yes"}, NOTHING)).reward == 1.0


def test_texts_are_compared_and_cosine_by_embeddings() -> None:
    similar = {"type": "text_similarity", **INPUT}
    assert run({**similar, "evaluation_metric": "fuzzy_match"}, "yea").reward == pytest.approx(
        2 / 3
    )
    long = run({**similar, "evaluation_metric": "rouge_l"}, "x" * 100_001)
    assert long.errors == {"other_error": True}

    async def embed(texts: Sequence[str]) -> Sequence[Sequence[float]]:
        if texts[0] == "down":
            raise EngineError("the embedding model has ended")
        return [[3.0, 4.0], [4.0, 3.0] if texts[0] == "yes" else [0.0, 0.0]]

    cosine = {**similar, "evaluation_metric": "cosine"}
    assert run(cosine, services=Services(embed)).reward == pytest.approx(24 / 25)
    assert run(cosine, "no", services=Services(embed)).reward == 0.0
    assert run(cosine, "down", services=Services(embed)).errors == {"other_error": True}


def test_a_model_scores_and_its_tokens_are_counted() -> None:
    graded = run(SCORE, services=answers('{"result": 0.75}'))
    assert (graded.reward, graded.errors) == (0.75, {})
    assert graded.usage["judge"]["total_tokens"] == 5
    assert run(LABEL, services=answers("good")).reward == 1.0
    assert run(LABEL, services=answers("bad")).reward == 0.0


def test_a_model_that_gives_no_score_is_an_error_that_still_used_tokens() -> None:
    odd = run(SCORE, services=answers("2"))
    assert (odd.reward, odd.errors) == (0.0, {"model_grader_parse_error": True})
    assert odd.usage["judge"]["total_tokens"] == 5
    assert run(SCORE, services=answers(None)).errors == {"model_grader_refusal_error": True}


def test_a_model_that_cannot_be_asked_is_an_error_with_its_reason() -> None:
    async def chat(*_: object) -> tuple[str | None, Mapping[str, int]]:
        raise EngineError("the engine has ended")

    graded = run(SCORE, services=Services(chat=chat))
    assert graded.errors == {
        "model_grader_server_error": True,
        "model_grader_server_error_details": "the engine has ended",
    }


def test_a_formula_joins_rewards_and_usage() -> None:
    value = multi("0.5 * a + 0.5 * b", a=check(), b=SCORE)
    graded = run(value, services=answers("0.5"))
    assert graded.reward == 0.75
    assert graded.sub_rewards == {"a": 1.0, "b": 0.5}
    twice = run(multi("a + b", a=SCORE, b=SCORE), services=answers("0.5"))
    assert twice.usage == {
        "judge": {"prompt_tokens": 6, "completion_tokens": 4, "total_tokens": 10}
    }


def test_a_formula_without_a_value_and_a_grader_with_an_error_give_no_reward() -> None:
    divided = run(multi("1 / a", a=check()), "no")
    assert (divided.reward, divided.errors) == (0.0, {"formula_parse_error": True})
    assert divided.sub_rewards == {"a": 0.0}
    partly = run(multi("a + b", a=check(), b=check(input="{{item.none}}")))
    assert (partly.reward, partly.errors) == (0.0, {"invalid_variable_error": True})
    assert partly.sub_rewards == {"a": 1.0}
    assert partly.reasons == ("b: there is no item.none",)


def confined() -> bool:
    try:
        require_confinement()
    except GraderError:
        return False
    return True


needs_walls = pytest.mark.skipif(not confined(), reason="this kernel cannot confine")


@needs_walls
def test_python_sees_sample_and_item() -> None:
    graded = run(python("return len(sample['output_text']) + item['n'] / 2"), "four", n=1)
    assert (graded.reward, graded.errors) == (4.5, {})
    parsed = run(python("return sample['output_json']['x']"), '{"x": 3}')
    assert parsed.reward == 3.0
    assert run(python("return 'output_json' in sample and 1 or 0"), "plain").reward == 0.0


@needs_walls
@pytest.mark.parametrize(
    "body",
    [
        "return float('nan')",
        "return float('inf')",
        "return '1'",
        "return True",
        "return None",
        "return 10 ** 400",
        "return [1]",
        "raise ValueError",
        "import os; os._exit(0)",
        "return 1j",
    ],
)
def test_python_that_returns_no_finite_number_is_an_error_with_details(body: str) -> None:
    graded = run(python(body))
    assert graded.reward == 0.0
    assert graded.errors["python_grader_runtime_error"] is True
    details = graded.errors["python_grader_runtime_error_details"]
    assert isinstance(details, str)
    assert 0 < len(details) <= 2000


@pytest.mark.parametrize(
    ("value", "path", "says"),
    [
        (python("return 1"), "type", "switched off"),
        (SCORE, "type", "score_model asks a model"),
        (multi("a", a=LABEL), "graders.a.type", "label_model asks a model"),
        (
            {"type": "text_similarity", **INPUT, "evaluation_metric": "cosine"},
            "evaluation_metric",
            "needs an embedding model",
        ),
    ],
)
def test_what_a_grader_needs_and_is_not_there_is_refused(
    value: object, path: str, says: str
) -> None:
    with pytest.raises(GraderError, match=says) as error:
        require(parse_grader(value), Services())
    assert error.value.path == path
    with pytest.raises(GraderError, match=says):
        run(value, services=Services())
