from __future__ import annotations

import pytest

from tunesmith.graders.template import (
    LONGEST,
    MissingVariable,
    NotJson,
    TooLong,
    parse_template,
)

VARIABLES = {
    "item": {"answer": "42", "n": 7, "list": [{"a-b": True}, None], "deep": {"x": {"y": "é"}}},
    "sample": {
        "output_text": '{"x": [1, 2]}',
        "output_json": {"x": [1, 2]},
        "output_tools": [{"function": {"name": "look", "arguments": "{}"}}],
    },
}


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("no variable, { one brace } and }} alone", "no variable, { one brace } and }} alone"),
        ("{{item.answer}}", "42"),
        ("<{{ item.answer }}|{{\titem.n\n}}>", "<42|7>"),
        ("{{sample.output_text}}", '{"x": [1, 2]}'),
        ("{{sample.output_json.x[1]}}", "2"),
        ("{{ sample.output_tools[0].function.name }}", "look"),
        ("{{item.list[0].a-b}}{{item.list[1]}}", "truenull"),
        ("{{item.deep}}", '{"x": {"y": "é"}}'),
        ("", ""),
    ],
)
def test_variables_are_filled_in_and_values_that_are_no_text_are_json(
    text: str, filled: str
) -> None:
    assert parse_template(text).fill(VARIABLES) == filled


def test_what_is_filled_in_is_never_read_as_a_template() -> None:
    variables = {"item": {"a": "{{sample.output_text}}"}, "sample": {"output_text": "x"}}
    assert parse_template("{{item.a}}").fill(variables) == "{{sample.output_text}}"


@pytest.mark.parametrize(
    "text",
    [
        "{{item}}",
        "{{ items.a }}",
        "{{item.a",
        "{{}}",
        "{{item.a + 1}}",
        "{{item.a|upper}}",
        "{{item.a()}}",
        "{{item.a[-1]}}",
        "{{item.a[b]}}",
        "{{item..a}}",
        "{{item.a.}}",
        "{{ {{item.a}} }}",
        "{{''.__class__}}",
        "{% if item %}{{x}}{% endif %}",
    ],
)
def test_anything_but_a_path_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a variable|without"):
        parse_template(text)


@pytest.mark.parametrize(
    "text",
    [
        "{{item.none}}",
        "{{item.answer.x}}",
        "{{item.list[2]}}",
        "{{item.n[0]}}",
        "{{item.deep.__class__}}",
        "{{sample.output_json.y}}",
        "{{item.answer[0]}}",
    ],
)
def test_a_variable_that_is_not_there_is_missing(text: str) -> None:
    with pytest.raises(MissingVariable, match="there is no"):
        parse_template(text).fill(VARIABLES)


def test_output_that_is_no_json_is_told_apart_from_a_missing_variable() -> None:
    variables = {"item": {}, "sample": {"output_text": "plain"}}
    with pytest.raises(NotJson):
        parse_template("{{sample.output_json.x}}").fill(variables)
    with pytest.raises(NotJson):
        parse_template("{{sample.output_json}}").fill(variables)


def test_a_template_that_multiplies_a_text_ends_at_its_limit() -> None:
    template = parse_template("{{item.a}}" * 1000)
    assert len(template.fill({"item": {"a": "x" * (LONGEST // 1000)}})) == LONGEST
    with pytest.raises(TooLong):
        template.fill({"item": {"a": "x" * (LONGEST // 1000 + 1)}})
