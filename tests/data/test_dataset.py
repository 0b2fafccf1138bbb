from __future__ import annotations

import gzip
import io
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tunesmith.data.dataset import Dataset, read
from tunesmith.data.examples import Conversation, Document, Example, Source
from tunesmith.errors import DataError, RowError, UsageError


def _file(path: Path, rows: Sequence[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def _rows(count: int) -> list[dict[str, str]]:
    return [{"prompt": f"{n} times {n + 7}?", "completion": str(n * (n + 7))} for n in range(count)]


def _check(data: Dataset) -> None:
    """Every row is accounted for, and every pass gives the same."""
    assert data.rows == data.used + data.bad + data.duplicates
    assert len(list(data)) == len(data) == len(data.groups)
    assert list(data) == list(data)
    assert len(list(data.rejected())) == data.bad == sum(p.count for p in data.problems)
    assert len(list(data.duplicate_rows())) == data.duplicates


# file: rows, used, bad, duplicates, a note, the first reason
_DIRTY: dict[str, tuple[int, int, int, int, str, str]] = {
    "alpaca_identity.json": (91, 91, 0, 0, "read as Alpaca", ""),
    "alpaca_two_rows.json": (2, 2, 0, 0, "read as Alpaca", ""),
    "chosen_rejected_full_dialogues.json": (1, 1, 0, 0, "preference pairs", ""),
    "chosen_rejected_messages.jsonl": (10, 10, 0, 0, "chosen = `chosen_messages`", ""),
    "dolly_context.json": (12, 12, 0, 0, "input = `context`, output = `response`", ""),
    "faq_html_cells.csv": (213, 210, 0, 3, "question/answer; the columns `answer_html`", ""),
    "functions_jsonl_named_json.json": (50, 0, 50, 0, "no known format", "`function` fit no"),
    "functions_trailing_comma_1.json": (67, 0, 67, 0, "no known format", "fit no known format"),
    "functions_trailing_comma_2.json": (23, 0, 23, 0, "no known format", "fit no known format"),
    "image_input_output.json": (1, 0, 1, 0, "prompt/completion", "the row has an image"),
    "image_messages.json": (6, 0, 6, 0, "OpenAI chat", "the row has an image"),
    "image_parts_messages.jsonl": (24, 0, 24, 0, "OpenAI chat", "the row has an image"),
    "instruction_response.json": (2, 2, 0, 0, "prompt = `instruction`", ""),
    "intents_no_header.csv": (9960, 9960, 0, 0, "no header line", ""),
    "openai_chat_clean.jsonl": (128, 128, 0, 0, "read as OpenAI chat", ""),
    "openai_chat_odd_rows.jsonl": (5, 4, 1, 0, "OpenAI chat", "the assistant speaks first"),
    "openai_tools_double_encoded.jsonl": (5, 2, 3, 0, "`parallel_tool_calls`", "encoded twice"),
    "prompt_completion.jsonl": (144, 123, 0, 21, "read as prompt/completion", ""),
    "sharegpt_conversation.json": (1, 1, 0, 0, "read as ShareGPT", ""),
    "sharegpt_empty_turns.json": (1, 0, 1, 0, "read as ShareGPT", "assistant turn 2 is empty"),
    "sharegpt_one_row.json": (1, 1, 0, 0, "read as ShareGPT", ""),
    "sharegpt_tool_calls.json": (300, 265, 0, 35, "read as ShareGPT", ""),
    "slots_not_utf8.json": (1, 0, 1, 0, "no known format", "not valid UTF-8"),
    "support_requests_duplicates.csv": (26872, 24635, 0, 2237, "label = `category`", ""),
    "text_only_sql.jsonl": (100, 0, 100, 0, "no known format", "`text` fit no known format"),
    "transcripts_as_one_string.jsonl": (19, 0, 19, 0, "no known format", "`messages_display`"),
}


@pytest.mark.parametrize("name", _DIRTY)
def test_every_row_of_the_dirty_files_is_accounted_for(
    shared: Callable[[str], Path], name: str
) -> None:
    rows, used, bad, duplicates, note, reason = _DIRTY[name]
    data = read([str(shared(f"dirty_files/{name}"))])
    assert (data.rows, data.used, data.bad, data.duplicates) == (rows, used, bad, duplicates)
    assert note in " ".join(data.notes)
    if rows < 1000:
        _check(data)
    if bad:
        first = next(data.rejected())
        assert reason in first.reason
        assert first.row
        assert len(first.row) <= 2000
    assert data.nbytes <= 300 * rows


def test_the_photo_among_the_dirty_files_is_refused_whole(shared: Callable[[str], Path]) -> None:
    with pytest.raises(DataError, match="is a JPEG image"):
        read([str(shared("dirty_files/oversized_photo_label_7.jpg"))])


def test_the_tested_dirty_files_are_all_there_are(shared: Callable[[str], Path]) -> None:
    there = {path.name for path in shared("dirty_files").iterdir()}
    assert there == {*_DIRTY, "oversized_photo_label_7.jpg", "README.md"}


def test_rejected_rows_name_file_line_and_kind(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    text = ["{", '{"prompt": "a", "completion": 42}', '{"prompt": "c", "completion": 7}', "[]"]
    good = [json.dumps(row) for row in _rows(3)]
    path.write_text("\n".join([*good, *text]))
    data = read([str(path)])
    _check(data)
    assert (data.used, data.bad) == (3, 4)
    assert [row.source for row in data.rejected()] == [Source(str(path), n) for n in (4, 5, 6, 7)]
    worst = data.problems[0]
    assert (worst.kind, worst.count, worst.first.source.line) == ("`completion` is N", 2, 5)
    assert worst.first.reason == "`completion` is 42; expected text. Write it in quotes."


def test_exact_copies_are_removed_and_name_what_they_copy(tmp_path: Path) -> None:
    one = _file(tmp_path / "one.jsonl", _rows(3))
    chat = [
        {"role": "user", "content": "1 times 8?"},
        {"role": "assistant", "content": "8"},
    ]
    two = _file(tmp_path / "two.jsonl", [{"messages": chat}, {"messages": chat}])
    data = read([one, two])
    _check(data)
    assert (data.rows, data.used, data.duplicates) == (5, 3, 2)
    assert {row.reason for row in data.duplicate_rows()} == {f"exact copy of {one}:2"}
    assert read([one]).fingerprint == data.fingerprint
    kept = read([one, two], keep_duplicates=True)
    _check(kept)
    assert (kept.used, kept.duplicates) == (5, 0)
    assert len(set(kept.groups[[1, 3, 4]].tolist())) == 1


def test_the_fingerprint_is_of_the_rows_and_not_of_the_file(tmp_path: Path) -> None:
    rows = _rows(5)
    plain = read([_file(tmp_path / "a.jsonl", rows)])
    (tmp_path / "b.json").write_text(json.dumps(rows))
    (tmp_path / "c.csv").write_text(
        "prompt,completion\n" + "\n".join(f"{r['prompt']},{r['completion']}" for r in rows)
    )
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    for name in ("b.json", "c.csv", "d.jsonl.gz"):
        assert read([str(tmp_path / name)]).fingerprint == plain.fingerprint
    other = read([_file(tmp_path / "e.jsonl", rows[::-1])])
    assert other.fingerprint != plain.fingerprint


def test_a_limit_is_a_seeded_sample_in_the_files_order(tmp_path: Path) -> None:
    files = [_file(tmp_path / f"{n}.jsonl", _rows(60)[n * 30 :][:30]) for n in range(2)]
    data = read(files, limit=20, seed=1)
    _check(data)
    assert data.rows == data.used == 20
    order = [int(str(row.prompt[0].content).split()[0]) for row in data]
    assert order == sorted(order)
    assert {row.source.file for row in data} == set(files)
    assert read(files, limit=20, seed=1).fingerprint == data.fingerprint
    assert read(files, limit=20, seed=2).fingerprint != data.fingerprint
    assert read(files, limit=99).rows == 60


def test_refining_gives_pieces_and_refusals(tmp_path: Path) -> None:
    def refine(example: Example) -> Sequence[Example]:
        assert isinstance(example, Conversation)
        number = example.source.line
        if number == 2:
            raise RowError("the row has 9,000 tokens", expected="at most 512")
        if number == 3:
            turns = (replace(example.messages[0], content="first half"), *example.messages[1:])
            return (replace(example, messages=turns), example)
        return (example,)

    path = _file(tmp_path / "rows.jsonl", [*_rows(4), _rows(4)[2]])
    data = read([path], refine=refine)
    _check(data)
    assert (data.rows, data.used, data.bad, data.duplicates, len(data)) == (5, 3, 1, 1, 4)
    assert [row.source.line for row in data] == [1, 3, 3, 4]
    assert data.problems[0].kind == "the row has N tokens"


def test_columns_and_format_overrule(tmp_path: Path) -> None:
    path = _file(tmp_path / "rows.jsonl", [{"frage": "a", "antwort": "b", "x": 1}])
    assert read([path]).bad == 1
    data = read([path], columns={"prompt": "frage", "completion": "antwort"})
    assert data.used == 1
    assert "the column `x` is not used" in data.notes[0]
    assert data.notes[0].startswith(f"{path}: ")
    with pytest.raises(UsageError, match=r"no column `question`.*`frage`, `antwort`, `x`"):
        read([path], columns={"prompt": "question", "completion": "antwort"})
    with pytest.raises(UsageError, match="read as Alpaca, there is no column for `instruction`"):
        read([path], format="alpaca")


def test_standard_input_is_read_at_every_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "".join(json.dumps(row) + "\n" for row in _rows(4))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    data = read(["-"])
    _check(data)
    assert {row.source.file for row in data} == {"-"}


def test_progress_counts_the_rows(tmp_path: Path) -> None:
    seen: list[int] = []
    read([_file(tmp_path / "rows.jsonl", _rows(2500))], progress=seen.append)
    assert seen == [1024, 2048, 2500]


def test_a_row_holds_at_most_300_bytes(tmp_path: Path) -> None:
    data = read([_file(tmp_path / "rows.jsonl", _rows(3000))])
    assert data.nbytes / data.rows <= 300


def test_groups_do_not_depend_on_the_order_of_rows(tmp_path: Path) -> None:
    rows = [
        {"text": f"where is my order number {n % 70} now{'!' * (n % 3)}", "label": "x"}
        for n in range(150)
    ]
    forward = read([_file(tmp_path / "a.jsonl", rows)], keep_duplicates=True)
    backward = read([_file(tmp_path / "b.jsonl", rows[::-1])], keep_duplicates=True)

    def partition(data: Dataset) -> set[frozenset[str]]:
        sets: dict[int, set[str]] = {}
        for key, row in zip(data.groups.tolist(), data, strict=True):
            sets.setdefault(key, set()).add(str(row.prompt[0].content))
        return {frozenset(members) for members in sets.values()}

    assert partition(forward) == partition(backward)


def test_an_empty_array_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text("[]")
    with pytest.raises(DataError, match="has no rows"):
        read([str(tmp_path / "rows.json")])


def test_a_column_of_text_is_a_document_where_it_is_asked_for(tmp_path: Path) -> None:
    for column in ("text", "content", "document"):
        name = _file(
            tmp_path / f"{column}.jsonl", [{column: f"text {n}", "n": n} for n in range(3)]
        )
        data = read([name], format="text")
        assert list(data) == [Document(f"text {n}", Source(name, n + 1)) for n in range(3)]
        assert read([name]).bad == 3
        _check(data)
    table = tmp_path / "rows.csv"
    table.write_text('content,label\n"one, two",a\n')
    assert list(read([str(table)], format="text")) == [Document("one, two", Source(str(table), 2))]
    assert (
        read([str(table)], format="text", columns={"text": "label"})
        .notes[0]
        .startswith(f"{table}: read as text (text = `label`)")
    )


def test_a_text_is_its_passages_and_only_the_last_one_ends_it(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    text = "".join(f"Paragraph {n}, {'word ' * 150}\n\n" for n in range(9))
    path.write_text(text)
    data = read([str(path)], format="text")
    rows = [row for row in data if isinstance(row, Document)]
    assert "".join(row.text for row in rows) == text
    assert [row.ends for row in rows] == [False] * 4 + [True]
    assert data.places.tolist() == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert "running text" in data.notes[0]
    _check(data)


def test_pieces_of_one_row_are_one_group(tmp_path: Path) -> None:
    name = _file(tmp_path / "a.jsonl", [{"text": f"{n} {n + 7} {n * n}"} for n in range(20)])

    def words(row: Example) -> list[Example]:
        assert isinstance(row, Document)
        return [replace(row, text=f"{word} of {row.text}") for word in row.text.split()]

    data = read([name], format="text", refine=words)
    assert (data.used, len(data), len(set(data.groups.tolist()))) == (20, 60, 20)
    assert (data.groups.reshape(20, 3) == data.groups.reshape(20, 3)[:, :1]).all()
