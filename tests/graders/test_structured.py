from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.chat import ToolCall, write_tool_calls
from tunesmith.graders.structured import CALLS, json_grader, load

JSON = json_grader()
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


def f1(outputs: list[str], references: list[str], grader: object = JSON) -> float:
    metric = grader.corpus[0]  # type: ignore[attr-defined]
    return float(metric.value(metric.counts(outputs, references).sum(0)[None])[0])


@given(st.dictionaries(st.text(max_size=3), VALUES, max_size=4))
def test_order_of_keys_and_layout_are_irrelevant(value: dict[str, object]) -> None:
    turned = json.dumps(dict(reversed(value.items())), indent=2)
    assert JSON.grade(turned, json.dumps(value)) == {"valid": 1.0, "exact": 1.0}
    assert f1([turned], [json.dumps(value)]) == 1.0


@pytest.mark.parametrize(
    ("output", "reference", "exact"),
    [
        ('{"a": 1.0}', '{"a": 1}', 1.0),
        ('{"a": true}', '{"a": 1}', 0.0),
        ('{"a": "1"}', '{"a": 1}', 0.0),
        ('{"a": null}', "{}", 0.0),
        ("[1, 2]", "[2, 1]", 0.0),
    ],
)
def test_equal_is_equal_as_json(output: str, reference: str, exact: float) -> None:
    assert JSON.grade(output, reference)["exact"] == exact


@pytest.mark.parametrize(
    "text", ["", "ok", '"a"', "3", '```json\n{"a": 1}\n```', '{"a": NaN}', '{"a": 1} {"b": 2}', "[" * 5000]
)  # fmt: skip
def test_what_a_program_could_not_read_is_not_valid(text: str) -> None:
    assert JSON.grade(text, '{"a": 1}') == {"valid": 0.0, "exact": 0.0}


def test_a_reference_that_is_not_json_is_compared_as_text() -> None:
    assert JSON.grade("I cannot help.", "I cannot help.") == {"valid": 0.0, "exact": 1.0}


def test_f1_over_fields_by_hand() -> None:
    # row 1: a right, b wrong, c missing, d extra: 1 in common of 3 and 3 leaves; row 2: nothing of 1
    outputs = ['{"a": 1, "b": {"x": 2}, "d": 4}', "not json"]
    references = ['{"a": 1, "b": {"x": 3}, "c": 5}', '{"a": 1}']
    assert f1(outputs, references) == pytest.approx(2 * 1 / (3 + 3 + 0 + 1))


def test_items_of_an_array_count_in_any_order_and_as_often_as_they_stand() -> None:
    assert f1(["[1, 2, 2]"], ["[2, 1, 2]"]) == 1.0
    assert f1(["[2]"], ["[2, 2]"]) == pytest.approx(2 / 3)


def test_the_wording_of_prose_is_left_out_of_exact_and_f1_and_scored_by_chrf() -> None:
    grader = json_grader(("reply",))
    reference = '{"intent": "track", "reply": "Your parcel is on its way."}'
    other = '{"intent": "track", "reply": "On its way, your parcel is."}'
    scores = grader.grade(other, reference)
    assert (scores["valid"], scores["exact"]) == (1.0, 1.0)
    assert 0.3 < scores["chrf:reply"] < 1
    assert f1([other], [reference], grader) == 1.0
    missing = grader.grade('{"intent": "track"}', reference)
    assert (missing["exact"], missing["chrf:reply"]) == (0.0, 0.0)


def call(name: str, arguments: str) -> str:
    return write_tool_calls((ToolCall("x", name, arguments),))


def test_calls_are_equal_in_any_order_of_calls_and_arguments() -> None:
    a, b = call("find", '{"x": 1, "y": "z"}'), call("find", '{"y": "z", "x": 1.0}')
    c = call("stop", "{}")
    assert CALLS.grade(f"{a}\n{c}", f"{c}\n{b}") == {"valid": 1.0, "exact": 1.0}
    assert CALLS.grade(f"{a}\n{a}", a)["exact"] == 0.0


def test_an_unfinished_call_is_not_valid() -> None:
    whole = call("find", '{"x": 1}')
    assert CALLS.grade(whole[:-5], whole) == {"valid": 0.0, "exact": 0.0}
    assert CALLS.grade(whole + whole[:-5], whole)["valid"] == 0.0


def test_f1_of_calls_counts_names_and_arguments() -> None:
    # "find" is right, x is right, y is wrong: 2 in common of 3 and 3
    output, reference = call("find", '{"x": 1, "y": 2}'), call("find", '{"x": 1, "y": 3}')
    assert f1([output], [reference], CALLS) == pytest.approx(4 / 6)


def test_text_instead_of_a_call_is_not_exact_and_text_is_likened_to_text() -> None:
    assert CALLS.grade("I would look it up.", call("find", "{}"))["exact"] == 0.0
    both = CALLS.grade("No function fits.", "No function fits.")
    assert both == {"valid": 1.0, "exact": 1.0, "chrf:content": 1.0}


def test_load_takes_objects_and_arrays_only() -> None:
    assert load('{"a": []}') == {"a": []}
    assert load("7") is None
