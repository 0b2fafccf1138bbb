from __future__ import annotations

import pytest

from tunesmith.graders import asking
from tunesmith.graders.spec import LabelModel, ScoreModel, parse_grader

ASKED = {"name": "n", "model": "judge", "input": [{"role": "user", "content": "{{item.q}}?"}]}
VARIABLES = {"item": {"q": "How good"}, "sample": {"output_text": ""}}


def score(**fields: object) -> ScoreModel:
    grader = parse_grader({"type": "score_model", **ASKED, **fields})
    assert isinstance(grader, ScoreModel)
    return grader


def label(labels: list[str]) -> LabelModel:
    fields = {"labels": labels, "passing_labels": labels[:1]}
    grader = parse_grader({"type": "label_model", **ASKED, **fields})
    assert isinstance(grader, LabelModel)
    return grader


def test_a_score_is_asked_for_in_words_and_by_schema() -> None:
    params = {"temperature": 0, "seed": None}
    messages, arguments = asking.request(score(range=[1, 5], sampling_params=params), VARIABLES)
    wish = 'Answer with JSON only: {"result": SCORE}, where SCORE is a number from 1 to 5.'
    assert messages == [{"role": "user", "content": f"How good?\n\n{wish}"}]
    assert arguments["temperature"] == 0
    assert "seed" not in arguments
    wanted = arguments["response_format"]["json_schema"]
    assert wanted["schema"]["properties"] == {"result": {"type": "number"}}


def test_a_wish_behind_another_role_is_a_turn_of_its_own() -> None:
    messages, _ = asking.request(score(input=[{"role": "system", "content": "Grade."}]), VARIABLES)
    assert [message["role"] for message in messages] == ["system", "user"]


def test_a_label_is_one_of_a_list() -> None:
    messages, arguments = asking.request(label(["good", 'so "so"']), VARIABLES)
    assert messages[-1]["content"].endswith('one of "good", "so \\"so\\"".')
    schema = arguments["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["result"]["enum"] == ["good", 'so "so"']


@pytest.mark.parametrize(
    ("answer", "value"),
    [('{"result": 0.5}', 0.5), (" 1\n", 1.0), ('{"result": 0, "why": ""}', 0.0)],
)
def test_a_score_is_read_from_json_or_a_number(answer: str, value: float) -> None:
    assert asking.read(score(), answer) == value


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "good",
        '{"result": "1"}',
        "true",
        "NaN",
        "1.01",
        "-0.1",
        '{"score": 1}',
        "[1]",
        "9" * 5000,
        '{"result": NaN}',
        "null",
        "[" * 5000,
    ],
)
def test_an_answer_that_is_no_score_of_the_range_is_refused(answer: str) -> None:
    with pytest.raises(ValueError, match="not a number from 0 to 1"):
        asking.read(score(), answer)


def test_a_label_passes_fails_or_is_none() -> None:
    grader = label(["good", "bad", "3"])
    assert asking.read(grader, '{"result": "good"}') == 1.0
    assert asking.read(grader, "bad") == 0.0
    for answer in ("Good", '{"result": ["good"]}', "3", ""):
        with pytest.raises(ValueError, match="none of the labels"):
            asking.read(grader, answer)
