from __future__ import annotations

import time
from collections.abc import Generator

import pytest

from tunesmith.store import Store
from tunesmith.store.files import File, Upload
from tunesmith.store.jobs import Job


@pytest.fixture
def store(database: str) -> Generator[Store]:
    with Store(database) as opened:
        yield opened


def file(name: str, *, size: int = 5, expires: float | None = None) -> File:
    return File(f"file-{name}", "default", "a.jsonl", "fine-tune", size, time.time(), expires)


def test_files_are_listed_in_pages_by_purpose_either_way(store: Store) -> None:
    for number in range(5):
        store.files.add(file(str(number)))
    first = store.files.list("default", limit=2)
    assert [item.id for item in first.rows] == ["file-4", "file-3"]
    assert first.has_more
    rest = store.files.list("default", limit=10, after="file-3", ascending=False)
    assert [item.id for item in rest.rows] == ["file-2", "file-1", "file-0"]
    up = store.files.list("default", limit=2, after="file-1", ascending=True)
    assert [item.id for item in up.rows] == ["file-2", "file-3"]
    assert store.files.list("default", purpose="batch").rows == ()


def test_an_expired_file_is_not_there_and_its_bytes_can_go(store: Store) -> None:
    store.files.add(file("old", expires=time.time() - 1))
    store.files.add(file("new", expires=time.time() + 60))
    assert store.files.get("default", "file-old") is None
    assert [item.id for item in store.files.list("default").rows] == ["file-new"]
    assert store.files.expire() == ["file-old"]
    assert store.files.expire() == []


def test_another_projects_file_is_not_there(store: Store) -> None:
    key, _ = store.keys.make("x", project="theirs")
    store.files.add(file("a"))
    assert store.files.get(key.project, "file-a") is None
    assert not store.files.remove(key.project, "file-a")
    assert store.files.used(key.project) == 0
    assert store.files.used("default") == 5


def upload(expires: float) -> Upload:
    now = time.time()
    return Upload("upload_a", "default", "a.jsonl", "fine-tune", 10, "pending", now, now + expires)


def test_an_upload_takes_parts_until_it_is_completed(store: Store) -> None:
    begun = upload(60)
    store.files.add_upload(begun)
    parts = [store.files.add_part(begun, 5) for _ in range(2)]
    assert list(store.files.parts(begun.id)) == [part.id for part in parts if part]
    assert store.files.used("default") == 10
    assert store.files.complete(begun, file("a", size=10))
    assert not store.files.complete(begun, file("b", size=10))
    assert store.files.add_part(begun, 5) is None
    found = store.files.upload("default", begun.id)
    assert found is not None
    assert (found.status, found.file) == ("completed", "file-a")
    assert store.files.used("default") == 10
    assert store.files.known() == {"file-a"}


def test_an_upload_whose_time_is_over_is_expired_with_its_parts(store: Store) -> None:
    late = upload(-1)
    store.files.add_upload(late)
    part = store.files.add_part(late, 5)
    assert part is not None
    found = store.files.upload("default", late.id)
    assert found is not None
    assert found.status == "expired"
    assert store.files.expire() == [part.id]
    assert not store.files.cancel(late)


def test_a_project_has_only_so_many_bytes(store: Store) -> None:
    assert store.files.add(file("a", size=5), most=10)
    assert not store.files.add(file("b", size=6), most=10)
    assert store.files.add(file("b", size=5), most=10)


def test_an_expired_file_waits_for_the_open_job_that_reads_it(store: Store) -> None:
    store.files.add(file("old", expires=time.time() - 1))
    method = {"type": "supervised", "supervised": {}}
    named = ("default", None, "f", "base", "base", "file-x", "file-old", None, 1, method, None)
    store.jobs.create(Job("ftjob-a", *named, "validating_files", time.time()), most=9)
    assert store.jobs.readers("file-old") == {"ftjob-a": "validating_files"}
    assert store.files.expire() == []
    store.jobs.cancel("ftjob-a", "default")
    assert store.jobs.readers("file-old") == {"ftjob-a": "cancelled"}
    assert store.files.expire() == ["file-old"]
