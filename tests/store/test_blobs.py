from __future__ import annotations

import os
from pathlib import Path

import pytest

from tunesmith.store.blobs import Blobs, remove_copies


def test_bytes_are_there_whole_and_for_their_owner_alone(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path / "files")
    blobs.put("file-0123456789", b"abc")
    path = blobs.path("file-0123456789")
    assert path.read_bytes() == b"abc"
    assert path.stat().st_mode & 0o077 == 0
    assert blobs.folder.stat().st_mode & 0o077 == 0
    assert [item.name for item in blobs.folder.iterdir()] == ["file-0123456789"]
    blobs.remove("file-0123456789")
    blobs.remove("file-0123456789")
    assert not path.exists()


@pytest.mark.parametrize("name", ["../../etc/passwd", "file-", "/etc/passwd", "file-a/../b", "x"])
def test_only_an_id_becomes_a_path(tmp_path: Path, name: str) -> None:
    with pytest.raises(AssertionError):
        Blobs(tmp_path / "files").path(name)


def test_what_a_kill_left_behind_is_swept_up(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path / "files")
    for name in ("file-aaaaaaaa", "file-bbbbbbbb"):
        blobs.put(name, b"x")
        os.utime(blobs.path(name), (0, 0))
    blobs.scratch("file-cccccccc").write_bytes(b"still being written")
    assert blobs.sweep({"file-aaaaaaaa"}) == 1
    assert {path.name for path in blobs.folder.iterdir()} == {
        *("file-aaaaaaaa", "file-cccccccc.partial")
    }


def test_the_rows_that_a_job_has_copied_go_and_the_rest_stays(tmp_path: Path) -> None:
    data = tmp_path / "jobs" / "ftjob-a" / "data"
    data.mkdir(parents=True)
    for name in ("train.jsonl", "rejected.jsonl", "other.json"):
        (data / name).write_text("{}")
    remove_copies(tmp_path, "ftjob-a")
    remove_copies(tmp_path, "ftjob-none")
    assert [path.name for path in data.iterdir()] == ["other.json"]
