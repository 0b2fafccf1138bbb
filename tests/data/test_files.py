from __future__ import annotations

import gzip
import io
import json
import os
import sys
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tunesmith.data import files
from tunesmith.errors import DataError, RowError

_ROWS = [
    {"question": "Grüße\u2028an\u0085alle", "answer": "日本"},
    {"question": "b", "answer": "c"},
]
_LINES = "\n".join(json.dumps(row, ensure_ascii=False) for row in _ROWS)


def _load(path: Path, tmp_path: Path) -> list[dict[str, object]]:
    file = files.open_file(str(path), tmp_path / "spool", frozenset(("question",)))
    first = [row.load() for row in file.rows()]
    assert [row.load() for row in file.rows()] == first
    return first


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]
)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("layout", ["lines", "array", "csv"])
def test_every_encoding_of_every_text_container_reads_the_same(
    tmp_path: Path, encoding: str, end: str, layout: str
) -> None:
    texts = {
        "lines": _LINES,
        "array": json.dumps(_ROWS, ensure_ascii=False, indent=1),
        "csv": "question,answer\n" + "\n".join(",".join(row.values()) for row in _ROWS),
    }
    path = tmp_path / ("rows.csv" if layout == "csv" else "rows.json")
    path.write_bytes(texts[layout].replace("\n", end).encode(encoding))
    assert _load(path, tmp_path) == _ROWS


def test_gzip_is_known_by_its_bytes(tmp_path: Path) -> None:
    for name in ("rows.jsonl.gz", "rows.jsonl"):
        (tmp_path / name).write_bytes(gzip.compress(_LINES.encode()))
        assert _load(tmp_path / name, tmp_path) == _ROWS


def test_a_single_object_over_several_lines_is_one_row(tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    path.write_text(json.dumps({"conversations": [{"from": "human"}]}, indent=2))
    assert len(_load(path, tmp_path)) == 1


def test_blank_lines_are_no_rows_and_lines_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('\n{"a": 1}\n\n  \n{"a": 2}\n\n')
    file = files.open_file(str(path), tmp_path, ())
    assert [row.line for row in file.rows()] == [2, 5]


def test_invalid_utf8_is_an_error_of_its_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": "x"}\n{"a": "caf\xe9"}\n{"a": "y"}\n')
    rows = list(files.open_file(str(path), tmp_path, ()).rows())
    with pytest.raises(RowError, match=r"not valid UTF-8.*line 2, column 11"):
        rows[1].load()
    assert [rows[0].load(), rows[2].load()] == [{"a": "x"}, {"a": "y"}]
    path = tmp_path / "rows.json"
    path.write_bytes(b'[{"a": "x"},\n {"a": "caf\xe9"},\n {"a": "y"}]')
    rows = list(files.open_file(str(path), tmp_path, ()).rows())
    with pytest.raises(RowError, match=r"line 2, column 12"):
        rows[1].load()
    assert [rows[0].load(), rows[2].load()] == [{"a": "x"}, {"a": "y"}]


def test_trap_14_arrow_none_keys_are_dropped(tmp_path: Path) -> None:
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]},
        {"role": "assistant", "tool_calls": [{"function": {"name": "g", "arguments": {"y": 2}}}]},
    ]
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist([{"messages": messages}]), path)
    assert "None" in str(pq.read_table(path).to_pylist())
    assert _load(path, tmp_path) == [{"messages": messages}]
    packed = tmp_path / "rows.parquet.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert _load(packed, tmp_path) == [{"messages": messages}]


def test_standard_input_and_pipes_are_read_more_than_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(_LINES.encode()))
    monkeypatch.setattr(sys, "stdin", stdin)
    assert _load(Path("-"), tmp_path) == _ROWS
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=(_LINES,))
    writer.start()
    assert _load(pipe, tmp_path) == _ROWS
    writer.join()


def test_a_bomb_is_refused_with_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "bomb.jsonl.gz"
    path.write_bytes(gzip.compress((b" " * 65535 + b"\n") * 1200))
    file = files.DataFile(str(path), path, "lines", stamp=files._stamp(path))
    with pytest.raises(DataError, match="400 times the packed size"):
        list(file.rows())
    small = tmp_path / "small.gz"
    small.write_bytes(gzip.compress(b"x" * 5000))
    with (
        files.open_binary(small, "small.gz", limit=4000) as stream,
        pytest.raises(DataError, match="at most 4,000 bytes"),
    ):
        stream.read()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"  \n ", "nothing but space"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF", "is a JPEG image"),
        (b"PK\x03\x04....", "Office file"),
        (bytes(range(256)) * 4, "not a text file"),
        (b"hello", "not JSON: line 1, column 1"),
        (gzip.compress(b'{"a": 1}', mtime=0)[:-9], "cannot be unpacked"),
        (b"PAR1 and nothing else", "whole Parquet file"),
    ],
)
def test_what_is_no_rows_is_refused_by_name(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=said) as caught:
        _load(path, tmp_path)
    assert not isinstance(caught.value, RowError)
    assert "rows.jsonl" in str(caught.value)


def test_missing_files_and_folders_say_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        _load(tmp_path / "none.jsonl", tmp_path)
    with pytest.raises(DataError, match="is a folder"):
        _load(tmp_path, tmp_path)


def test_a_file_that_changes_between_two_passes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(_LINES)
    file = files.open_file(str(path), tmp_path, ())
    path.write_text(_LINES + "\n{}")
    with pytest.raises(DataError, match="changed"):
        list(file.rows())


PROSE = (
    "Call me Ishmael. Some years ago, never mind how long, I went.\n\nThen, Sir,\nI\nreturned.\n"
)


@pytest.mark.parametrize("name", ["book.txt", "book.md", "book.txt.gz", "book"])
def test_running_text_is_read_in_passages_where_text_is_asked_for(
    tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    content = PROSE.replace("\n", "\r\n").encode()
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    file = files.open_file(str(path), tmp_path, (), text=True)
    for _ in range(2):
        assert [row.load() for row in file.rows()] == [{"text": PROSE, "ends": True}]


@pytest.mark.parametrize("name", ["book.txt", "book.md"])
def test_prose_is_no_table_and_says_what_learns_from_it(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(PROSE)
    with pytest.raises(DataError, match=r"book\.\w+ is plain text.*method\.type=cpt"):
        files.open_file(str(path), tmp_path, ())
    path.write_text("ham\tsee you, then\nspam\twin, win, win\n")
    assert files.open_file(str(path), tmp_path, ()).container == "table"


def test_rows_stay_rows_where_text_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "rows.csv").write_text("text,n\na,1\n")
    for name, container in (("rows.jsonl", "lines"), ("rows.csv", "table")):
        file = files.open_file(str(tmp_path / name), tmp_path, ("text",), text=True)
        assert file.container == container


def test_a_passage_with_bytes_that_are_no_text_is_an_error_of_its_line(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_bytes(b"a" * 1990 + b"\n\nsecond\nbad \xff byte\n")
    good, bad = files.open_file(str(path), tmp_path, (), text=True).rows()
    assert good.load()["ends"] is False
    assert bad.line == 3
    with pytest.raises(RowError, match="line 4, column 5"):
        bad.load()
