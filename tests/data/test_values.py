from __future__ import annotations

import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.values import Row, read_values
from tunesmith.errors import RowError

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9999, 9999) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)


def _rows(text: str, array: bool = True) -> list[Row]:
    return list(read_values(io.StringIO(text), array))


@settings(max_examples=40)
@given(st.lists(st.dictionaries(st.text(max_size=4), _JSON), max_size=6), st.integers(0, 3))
def test_an_array_gives_what_json_gives(values: list[dict[str, object]], indent: int) -> None:
    text = json.dumps(values, indent=indent or None)
    assert [row.load() for row in _rows(text)] == json.loads(text)


def test_values_longer_than_a_chunk_are_read_whole() -> None:
    values = [{"a": "x" * 1_500_000}, {"b": 1}, {"c": "é" * 1_100_000}]
    assert [row.load() for row in _rows(json.dumps(values, ensure_ascii=False))] == values


def test_a_broken_element_names_line_and_column_and_the_others_are_read() -> None:
    text = '[\n  {"a": 1},\n  {"a": [1, 2,],\n   "b": {"c": "}"}},\n  {"a": 3}\n]\n'
    rows = _rows(text)
    assert [row.line for row in rows] == [1, 2, 3]
    assert [rows[0].load(), rows[2].load()] == [{"a": 1}, {"a": 3}]
    with pytest.raises(RowError, match=r"line 3, column 1[345]"):
        rows[1].load()
    assert rows[1].text.endswith('"}"}}')


def test_a_comma_after_the_last_element_costs_no_row() -> None:
    assert [row.load() for row in _rows('[{"a": 1},\n{"a": 2},\n]')] == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    "text", ['[{"a": 1}, {"a": 2', '[{"a": 1}, {"a": 2}', '[{"a": 1}] x', '[{"a": 1}, nonsense]']
)
def test_an_array_that_ends_badly_has_one_bad_row_more(text: str) -> None:
    rows = _rows(text)
    assert rows[0].load() == {"a": 1}
    with pytest.raises(RowError, match="not valid JSON"):
        rows[-1].load()


def test_objects_one_after_another_are_rows() -> None:
    rows = _rows('{\n "a": 1\n}\n{\n "a": 2\n}', array=False)
    assert [row.load() for row in rows] == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": 1,}', "column 9"),
        ("[1]", "is a list"),
        ("42", "is 42"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a": ' + "9" * 5000 + "}", "number too long"),
        (r'{"a": "\ud83d"}', "half a character"),
    ],
)
def test_a_line_that_is_no_object_says_why(text: str, said: str) -> None:
    with pytest.raises(RowError, match=said):
        Row(7, text).load()


def test_both_halves_of_a_character_are_one() -> None:
    assert Row(1, r'{"a": "\ud83d\ude00"}').load() == {"a": "😀"}


def test_a_long_row_is_shown_cut_and_writable() -> None:
    shown = Row(1, "\udcff" + "x" * 5000).shown()
    assert len(shown) == 2000
    assert shown.encode("utf-8").startswith(b"?x")
