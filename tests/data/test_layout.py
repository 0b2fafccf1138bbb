from __future__ import annotations

from typing import Any

import pytest

from tunesmith.data.layout import recognise, truth_of
from tunesmith.errors import UsageError

_TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


@pytest.mark.parametrize(
    ("row", "format"),
    [
        ({"messages": _TURNS}, "chat"),
        ({"messages": _TURNS, "label": True}, "unpaired-preference"),
        ({"prompt": "a", "completion": "b", "label": "false"}, "unpaired-preference"),
        ({"prompt": "a", "completion": "b", "label": "spam"}, "prompt-completion"),
        ({"conversations": []}, "sharegpt"),
        ({"prompt": "a", "completion": "b"}, "prompt-completion"),
        ({"Input": "a", "Output": "b"}, "prompt-completion"),
        ({"prompt": "a", "response": "b"}, "prompt-completion"),
        ({"instruction": "a", "response": "b"}, "prompt-completion"),
        ({"instruction": "a", "output": "b"}, "alpaca"),
        ({"instruction": "a", "input": "", "output": "b", "history": []}, "alpaca"),
        ({"instruction": "a", "context": "c", "response": "b", "category": "x"}, "alpaca"),
        ({"question": "a", "answer": "b"}, "question-answer"),
        ({"text": "a", "label": 3}, "text-label"),
        ({"utterance": "a", "intent": "b"}, "text-label"),
        ({"sentence": "a", "topic": "b"}, "text-label"),
        ({"input": {}, "preferred_output": [], "non_preferred_output": []}, "preference"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "preference"),
        ({"chosen_messages": [], "rejected_messages": []}, "preference"),
    ],
)
def test_a_format_is_known_by_its_columns(row: dict[str, Any], format: str) -> None:
    layout = recognise([row])
    assert layout is not None
    assert layout.format == format


@pytest.mark.parametrize("row", [{"text": "a"}, {"messages_display": "a"}, {"a": 1, "b": 2}, {}])
def test_columns_that_say_nothing_are_no_format(row: dict[str, Any]) -> None:
    assert recognise([row]) is None


def test_the_format_of_most_rows_counts() -> None:
    rows = [{"prompt": "a", "completion": "b"}] * 3 + [{"messages": _TURNS}] * 2
    layout = recognise(rows)
    assert layout is not None
    assert layout.format == "prompt-completion"


def test_labels_beside_an_instruction_show_themselves_by_repetition() -> None:
    few = [{"instruction": f"text {n}", "category": f"c{n % 3}"} for n in range(40)]
    many = [{"instruction": f"text {n}", "category": f"c{n}"} for n in range(40)]
    layout = recognise(few)
    assert layout is not None
    assert layout.format == "text-label"
    assert recognise(many) is None


def test_unused_and_renamed_columns_are_told() -> None:
    layout = recognise([{"prompt": "a", "Response": "b", "id": 1}])
    assert layout is not None
    assert layout.notes == (
        "read as prompt/completion (completion = `Response`); the column `id` is not used",
    )
    layout = recognise([{"messages": [{**_TURNS[0], "audio": 1}], "a": 1, "b": 1}])
    assert layout is not None
    assert layout.notes == (
        "read as OpenAI chat; the columns `a`, `b` are not used",
        "in the messages, `audio` not used",
    )


def test_numbers_as_labels_are_told() -> None:
    layout = recognise([{"text": "a", "label": 3}])
    assert layout is not None
    assert "learned as text" in layout.notes[1]


def test_columns_overrule_what_would_be_recognised() -> None:
    row = {"question": "a", "answer": "b", "text": "c"}
    layout = recognise([row], columns={"prompt": "text"})
    assert layout is not None
    assert (layout.format, layout.columns) == (
        "prompt-completion",
        {"prompt": "text", "completion": "answer"},
    )
    layout = recognise([row], "text-label", {"label": "answer"})
    assert layout is not None
    assert layout.columns == {"text": "text", "label": "answer"}


def test_a_name_or_column_that_is_not_there_is_wrong_usage() -> None:
    with pytest.raises(UsageError, match="`prmpt` is no standard name"):
        recognise([{"a": 1}], columns={"prmpt": "a"})
    with pytest.raises(UsageError, match=r"no column for `completion`.*`prompt`, `b`"):
        recognise([{"prompt": "a", "b": "c"}], "prompt-completion")


def test_truth_is_read_from_json_and_from_cells() -> None:
    assert [truth_of(value) for value in (True, 0, "FALSE", "1", 1.0)] == [
        True,
        False,
        False,
        True,
        True,
    ]
    assert [truth_of(value) for value in ("yes?", 2, None, [])] == [None] * 4
