from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tunesmith.errors import DataError, UsageError
from tunesmith.rag import documents


def lines(path: Path, *rows: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_documents_are_called_by_their_own_id_or_by_their_place(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Some text.")
    rows = lines(tmp_path / "b.jsonl", {"doc_id": "9", "text": "One."}, {"text": "Two."})
    found = documents.read([str(tmp_path / "a.txt"), str(rows)])
    assert [(d.id, d.named, d.source.line) for d in found.documents] == [
        (f"{tmp_path}/a.txt:1", False, 1),
        ("9", True, 1),
        (f"{rows}:2", False, 2),
    ]
    assert found.notes == ("3 documents of 18 characters",)


def test_a_folder_is_read_in_order_and_what_is_left_out_is_counted(tmp_path: Path) -> None:
    for name in ("b.md", "a.txt", "c.png", ".hidden.md"):
        (tmp_path / name).write_text("words")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "d.txt").write_text("words")
    found = documents.read([str(tmp_path), str(tmp_path / "a.txt")])
    assert [Path(d.source.file).name for d in found.documents] == ["a.txt", "b.md", "d.txt"]
    assert f"1 files in {tmp_path} are of kinds that are not read" in found.notes


def test_the_runs_own_rows_and_copies_of_them_are_never_documents(tmp_path: Path) -> None:
    own = lines(tmp_path / "train.jsonl", {"question": "q", "answer": "a"})
    lines(tmp_path / "copy.jsonl", {"question": "q", "answer": "a"})
    (tmp_path / "guide.md").write_text("A guide.")
    found = documents.read([str(tmp_path)], own=[str(own), "-"])
    assert [Path(d.source.file).name for d in found.documents] == ["guide.md"]
    said = [note for note in found.notes if "the run's own rows" in note]
    assert [Path(note.split()[0]).name for note in said] == ["copy.jsonl", "train.jsonl"]
    with pytest.raises(DataError, match="there are no documents"):
        documents.read([str(own)], own=[str(own)])


def test_an_id_that_stands_for_several_documents_gives_no_answer(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "faq.jsonl",
        {"faq_id": 1, "question": "a?", "answer": "A"},
        {"faq_id": 2, "question": "b?", "answer": "B"},
        {"faq_id": 2, "question": "c?", "answer": "C"},
    )
    found = documents.read([str(path)])
    assert found.answers == {"1": "A"}
    assert "1 ids stand for several documents each, as 2" in found.notes


def test_the_key_is_of_what_the_documents_say(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one")
    first = documents.read([str(path)]).key
    assert documents.read([str(path)]).key == first
    path.write_text("two")
    assert documents.read([str(path)]).key != first


def test_names_that_are_not_there_or_of_another_kind_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"\x89PNG")
    with pytest.raises(UsageError, match="of no kind that is read"):
        documents.read([str(tmp_path / "x.png")])
    with pytest.raises(UsageError, match="not there"):
        documents.read([str(tmp_path / "nothing")])


def test_too_many_documents_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MOST_DOCUMENTS", 1)
    path = lines(tmp_path / "many.jsonl", {"text": "a"}, {"text": "b"})
    with pytest.raises(DataError, match="more than 1 documents"):
        documents.read([str(path)])


def test_the_shared_sets_are_read(shared: Callable[[str], Path]) -> None:
    for name, count in (("wiki_qa", 240), ("health_faq", 107)):
        found = documents.read([str(shared(f"{name}/docs.jsonl"))])
        assert len(found.documents) == count
        assert all(document.named for document in found.documents)
    assert len(found.answers) == 107
