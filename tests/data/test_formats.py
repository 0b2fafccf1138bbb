from __future__ import annotations

from typing import Any

import pytest

from tunesmith.chat import Message
from tunesmith.data.examples import Conversation, Preference, Source, UnpairedPreference
from tunesmith.data.formats import document_of, parse_example, with_answer
from tunesmith.data.layout import recognise
from tunesmith.errors import RowError

_AT = Source("rows.jsonl", 1)
_ASKED, _GOOD, _POOR = Message("user", "a"), Message("assistant", "b"), Message("assistant", "c")
_USER = {"role": "user", "content": "a"}
_BOT = {"role": "assistant", "content": "b"}
_POOR_TURN = {"role": "assistant", "content": "c"}


def _parse(row: dict[str, Any]) -> Any:
    return parse_example(row, recognise([row]), _AT)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [_USER, _BOT], "parallel_tool_calls": False},
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
        {"prompt": "a", "completion": "b"},
        {"prompt": [_USER], "completion": [_BOT]},
        {"input": "a", "output": "b", "system": ""},
        {"instruction": "a", "response": "b"},
        {"instruction": "a", "input": "", "output": "b", "history": []},
        {"question": "a", "answer": "b"},
        {"text": "a", "label": "b"},
    ],
)
def test_every_format_gives_the_same_conversation(row: dict[str, Any]) -> None:
    assert _parse(row) == Conversation((_ASKED, _GOOD), _AT)


@pytest.mark.parametrize(
    "row",
    [
        {
            "input": {"messages": [_USER]},
            "preferred_output": [_BOT],
            "non_preferred_output": [_POOR_TURN],
        },
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        {"prompt": [_USER], "chosen": [_BOT], "rejected": [_POOR_TURN]},
        {"prompt": "a", "chosen": _BOT, "rejected": _POOR_TURN},
        {"chosen": [_USER, _BOT], "rejected": [_USER, _POOR_TURN]},
        {"prompt": "a", "chosen": [_USER, _BOT], "rejected": [_USER, _POOR_TURN]},
        {
            "chosen_messages": [
                {"role": m["role"], "content": [{"type": "text", "value": m["content"]}]}
                for m in (_USER, _BOT)
            ],
            "rejected_messages": [_USER, _POOR_TURN],
        },
    ],
)
def test_every_form_of_a_pair_gives_the_same_preference(row: dict[str, Any]) -> None:
    assert _parse(row) == Preference((_ASKED,), (_GOOD,), (_POOR,), _AT)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [_USER, _BOT], "label": True},
        {"prompt": "a", "completion": "b", "label": 1},
        {"prompt": [_USER], "completion": [_BOT], "label": "True"},
    ],
)
def test_rated_answers(row: dict[str, Any]) -> None:
    assert _parse(row) == UnpairedPreference((_ASKED,), (_GOOD,), True, _AT)


def test_alpaca_input_history_and_system_become_turns() -> None:
    row = {
        "instruction": "a",
        "input": "x",
        "output": "b",
        "system": "s",
        "history": [["q", "w"]],
    }
    assert _parse(row).messages == (
        Message("system", "s"),
        Message("user", "q"),
        Message("assistant", "w"),
        Message("user", "a\n\nx"),
        Message("assistant", "b"),
    )


def test_numbers_and_truth_values_are_labels_but_no_prompts() -> None:
    assert _parse({"text": "a", "label": 3}).answer.content == "3"
    assert _parse({"text": "a", "label": True}).answer.content == "true"
    with pytest.raises(RowError, match="`text` is 42; expected text"):
        _parse({"text": 42, "label": 3})


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "a", "completion": 42}, "`completion` is 42; expected text"),
        ({"prompt": " ", "completion": "b"}, "`prompt` is empty"),
        ({"prompt": "a", "completion": None}, "the row has no `completion`"),
        ({"text": "a", "label": ["x"]}, "`label` is a list"),
        ({"instruction": "a", "input": 3, "output": "b"}, "`input` is 3"),
        ({"instruction": "a", "input": "", "output": "b", "history": ["x"]}, "`history` is a list"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "are the same"),
        ({"chosen": "b", "rejected": "c"}, "has no prompt"),
        (
            {"chosen": [_USER, _BOT], "rejected": [{**_USER, "content": "z"}, _POOR_TURN]},
            "part at a turn that is no answer",
        ),
        ({"input": "a", "output": "b", "image": "x.png"}, "has an image"),
        ({"messages": [_USER, _BOT], "images": ["x.png"]}, "has an image"),
        ({"text": "a"}, "--map prompt=COLUMN"),
    ],
)
def test_a_row_that_does_not_fit_says_why(row: dict[str, Any], said: str) -> None:
    with pytest.raises(RowError) as caught:
        _parse(row)
    assert said in str(caught.value)


def test_a_rating_that_is_none_is_refused() -> None:
    layout = recognise([{"prompt": "a", "completion": "b", "label": True}])
    with pytest.raises(RowError, match="expected true or false"):
        parse_example({"prompt": "a", "completion": "b", "label": "maybe"}, layout, _AT)


def test_a_row_keeps_the_id_of_the_document_that_it_names() -> None:
    assert _parse({"question": "q", "answer": "a", "doc_id": "032"}).document == "032"
    assert _parse({"prompt": "q", "completion": "a", "faq_id": 7}).document == "7"
    assert _parse({"question": "q", "answer": "a"}).document == ""
    for nothing in (None, True, " ", [1]):
        assert document_of({"doc_id": nothing}) == ""
    notes = recognise([{"question": "q", "answer": "a", "doc_id": "1", "type": "t"}]).notes  # type: ignore[union-attr]
    assert notes[0].endswith("; `doc_id` names a row's document; the column `type` is not used")


def test_a_question_without_an_answer_takes_that_of_its_document() -> None:
    answers = {"7": "Seven."}
    asked = {"question": "q", "faq_id": 7}
    assert with_answer(asked, answers) == {**asked, "answer": "Seven."}
    assert with_answer({**asked, "answer": "mine"}, answers)["answer"] == "mine"
    for other in ({"question": "q", "faq_id": 8}, {"prompt": "q", "faq_id": 7}, {"question": "q"}):
        assert with_answer(other, answers) == other
