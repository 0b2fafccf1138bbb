from __future__ import annotations

from typing import Any

import pytest

from tunesmith.errors import GraderError
from tunesmith.graders.spec import (
    MOST_SOURCE,
    LabelModel,
    Multi,
    PythonGrader,
    ScoreModel,
    StringCheck,
    TextSimilarity,
    parse_grader,
)

CHECK = {
    "type": "string_check",
    "name": "same",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
    "operation": "eq",
}
ASKED = {"name": "asked", "model": "m", "input": [{"role": "user", "content": "How good?"}]}
SCORE = {"type": "score_model", **ASKED}
LABEL = {"type": "label_model", **ASKED, "labels": ["good", "bad"], "passing_labels": ["good"]}
MULTI = {"type": "multi", "name": "both", "graders": {"x": CHECK}, "calculate_output": "x"}
PYTHON = {"type": "python", "name": "p", "source": "def grade(sample, item): return 1"}


def names(value: object) -> list[str]:
    grader = parse_grader(value)
    assert isinstance(grader, Multi)
    return [name for name, _ in grader.graders]


def test_every_type_is_read() -> None:
    assert isinstance(parse_grader(CHECK), StringCheck)
    similar = {**CHECK, "type": "text_similarity", "evaluation_metric": "rouge_3"}
    del similar["operation"]
    assert isinstance(parse_grader(similar), TextSimilarity)
    assert isinstance(parse_grader({**PYTHON, "image_tag": "2025-05-08"}), PythonGrader)
    score = parse_grader(
        {**SCORE, "range": [1, 5], "sampling_params": {"max_completions_tokens": 9}}
    )
    assert isinstance(score, ScoreModel)
    assert score.range == (1.0, 5.0)
    assert score.sampling_params.arguments() == {"max_completion_tokens": 9}
    assert isinstance(parse_grader(LABEL), LabelModel)


def test_the_graders_of_a_multi_grader_come_as_a_map_a_list_or_alone() -> None:
    other = {**CHECK, "name": "other"}
    assert names({**MULTI, "graders": {"x": CHECK, "y": LABEL}}) == ["x", "y"]
    listed = {**MULTI, "graders": [CHECK, other], "calculate_output": "same + other"}
    assert names(listed) == ["same", "other"]
    assert names({**MULTI, "graders": CHECK, "calculate_output": "same"}) == ["same"]
    assert names({**MULTI, "graders": {"type": CHECK}, "calculate_output": "type"}) == ["type"]


def test_content_comes_as_text_a_part_or_parts() -> None:
    parts = [
        {"type": "input_text", "text": "a {{item.x}}"},
        "b",
        {"type": "output_text", "text": "c"},
    ]
    for content, filled in [("a", "a"), (parts[0], "a 1"), (parts, "a 1bc")]:
        grader = parse_grader({**SCORE, "input": [{"role": "user", "content": content}]})
        assert isinstance(grader, ScoreModel)
        assert grader.input[0].content.fill({"item": {"x": 1}}) == filled


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (3, ""),
        ({}, "type"),
        ({"type": "regex"}, "type"),
        ({**CHECK, "operation": "neq"}, "operation"),
        ({**CHECK, "input": "{{answer}}"}, "input"),
        ({**CHECK, "input": 1}, "input"),
        ({**CHECK, "pass": 1}, "pass"),
        ({k: v for k, v in CHECK.items() if k != "name"}, "name"),
        ({**CHECK, "name": "\ud800"}, ""),
        ({**PYTHON, "source": "#" * MOST_SOURCE}, "source"),
        ({**SCORE, "range": [1, 0]}, "range"),
        ({**SCORE, "range": [0, 1, 2]}, "range"),
        ({**SCORE, "range": [0, float("nan")]}, "range"),
        ({**SCORE, "input": []}, "input"),
        ({**SCORE, "input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
        (
            {**SCORE, "input": [{"role": "user", "content": {"type": "input_image"}}]},
            "input[0].content",
        ),
        ({**SCORE, "sampling_params": {"temperature": 3}}, "sampling_params.temperature"),
        ({**SCORE, "sampling_params": {"max_tokens": 3}}, "sampling_params.max_tokens"),
        ({**LABEL, "passing_labels": ["fine"]}, "passing_labels"),
        ({**MULTI, "graders": {"x": {**CHECK, "operation": "is"}}}, "graders.x.operation"),
        ({**MULTI, "graders": [{**CHECK, "operation": "is"}]}, "graders[0].operation"),
        ({**MULTI, "graders": {"x": MULTI}}, "graders.x.type"),
        ({**MULTI, "graders": [CHECK, CHECK], "calculate_output": "same"}, "graders"),
        ({**MULTI, "graders": {}, "calculate_output": "1"}, "graders"),
        ({**MULTI, "graders": 5}, "graders"),
        ({**MULTI, "calculate_output": "x + y"}, "calculate_output"),
        ({**MULTI, "calculate_output": "x; y"}, "calculate_output"),
    ],
)
def test_what_is_not_a_grader_is_refused_with_its_place(value: Any, path: str) -> None:
    with pytest.raises(GraderError) as error:
        parse_grader(value)
    assert error.value.path == path
    assert error.value.found.startswith(path or "grader")
