from __future__ import annotations

import io

import pytest

from tunesmith.data.tables import sniff, table_rows

_KNOWN = frozenset(("question", "answer", "text", "label"))


def _read(text: str, suffix: str = ".csv") -> tuple[list[dict[str, str]], list[int]]:
    table = sniff(text, suffix, _KNOWN, whole=True)
    rows = list(table_rows(io.StringIO(text, newline=""), table))
    return [row.load() for row in rows], [row.line for row in rows]


@pytest.mark.parametrize("mark", [",", "\t", ";", "|"])
def test_the_delimiter_is_found(mark: str) -> None:
    rows, lines = _read(f"question{mark}answer\na b{mark}c, d; e\nf{mark}g\n".replace(", d; e", ""))
    assert rows == [{"question": "a b", "answer": "c"}, {"question": "f", "answer": "g"}]
    assert lines == [2, 3]


def test_quoted_line_breaks_stay_in_their_cell_and_lines_count_on() -> None:
    rows, lines = _read('question,answer\r\n"a\r\nb","say ""no"""\r\nc,d\r\n')
    assert rows[0] == {"question": "a\r\nb", "answer": 'say "no"'}
    assert lines == [2, 4]


def test_single_quotes_are_taken_off() -> None:
    rows, _ = _read("'question','answer'\n'a, b','c'\n'd','e'\n")
    assert rows == [{"question": "a, b", "answer": "c"}, {"question": "d", "answer": "e"}]


def test_a_lone_quote_swallows_nothing_in_a_tsv() -> None:
    lines = ["question\tanswer", '"5 inch\tpipe', *(f"q{n}\ta{n}" for n in range(60))]
    rows, _ = _read("\n".join(lines), ".tsv")
    assert len(rows) == 61
    assert rows[0] == {"question": '"5 inch', "answer": "pipe"}


def test_data_in_the_first_line_is_no_header() -> None:
    text = "is it cold today,weather\nplay a song,music\nwill it rain,weather\n"
    table = sniff(text, ".csv", _KNOWN, whole=True)
    assert not table.has_header
    assert table.header == ("text", "label")
    assert "no header line" in table.notes[0]
    assert len(list(table_rows(io.StringIO(text), table))) == 3


def test_names_that_nobody_knows_are_a_header_all_the_same() -> None:
    rows, _ = _read("frage,antwort\nwas ist das,ein Test\n")
    assert rows == [{"frage": "was ist das", "antwort": "ein Test"}]


def test_a_row_with_too_many_cells_is_refused_and_missing_ones_are_missing() -> None:
    text = "question,answer\na,b\na,b,c\nd\ne,f,\n"
    rows = list(table_rows(io.StringIO(text), sniff(text, ".csv", _KNOWN, whole=True)))
    assert rows[1].error is not None
    assert "3 cells" in str(rows[1].error)
    assert [rows[2].load(), rows[3].load()] == [{"question": "d"}, {"question": "e", "answer": "f"}]
