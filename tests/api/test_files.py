from __future__ import annotations

import time
from typing import Any

import openai
import pytest

from tunesmith.store.files import File


def put(served: Any, name: str = "a.jsonl", content: bytes = b"{}\n", **more: Any) -> Any:
    return served.sdk().files.create(file=(name, content), purpose="fine-tune", **more)


def test_a_file_is_uploaded_shown_read_back_and_deleted(
    served: Any, conforms: Any, rows: bytes
) -> None:
    client = served.sdk()
    made = put(served, "training.jsonl", rows)
    assert (made.bytes, made.filename, made.purpose) == (len(rows), "training.jsonl", "fine-tune")
    assert made.status == "processed"
    assert made.expires_at is None
    assert client.files.retrieve(made.id) == made
    assert client.files.wait_for_processing(made.id) == made
    content = client.files.content(made.id)
    assert content.read() == rows
    assert content.response.headers["content-type"] == "application/jsonl"
    conforms("OpenAIFile", made.to_dict(mode="json"))
    gone = client.files.delete(made.id)
    conforms("DeleteFileResponse", gone.to_dict())
    assert list((served.home / "files").iterdir()) == []
    with pytest.raises(openai.NotFoundError, match=f"No such File object: {made.id}"):
        client.files.retrieve(made.id)


def test_files_are_listed_in_pages_to_the_end(served: Any, conforms: Any) -> None:
    client = served.sdk()
    ids = [put(served, f"{n}.jsonl").id for n in range(7)]
    other = client.files.create(file=("x.png", b"x"), purpose="vision")
    assert [file.id for file in client.files.list(limit=2)] == [other.id, *reversed(ids)]
    assert [file.id for file in client.files.list(limit=3, order="asc")] == [*ids, other.id]
    assert [file.id for file in client.files.list(purpose="vision")] == [other.id]
    page: Any = client.files.list(limit=2)
    assert (page.first_id, page.last_id, page.has_more) == (other.id, ids[-1], True)
    conforms("ListFilesResponse", page.to_dict(mode="json"))
    conforms("ListFilesResponse", client.files.list(purpose="batch").to_dict(mode="json"))


def test_going_on_behind_a_file_that_is_gone_is_said_instead_of_ending(served: Any) -> None:
    client = served.sdk()
    for n in range(3):
        put(served, f"{n}.jsonl")
    page = client.files.list(limit=1)
    client.files.delete(page.data[0].id)
    with pytest.raises(openai.BadRequestError, match="in this list") as caught:
        page.get_next_page()
    assert caught.value.param == "after"


def test_a_file_expires(served: Any) -> None:
    made = put(served, expires_after={"anchor": "created_at", "seconds": 3600})
    assert made.expires_at == made.created_at + 3600
    for wrong in ({"seconds": 3599}, {"seconds": 2_592_001}, {"anchor": "now"}):
        with pytest.raises(openai.BadRequestError, match="expires_after"):
            put(served, expires_after={"anchor": "created_at", "seconds": 3600, **wrong})
    served.store.files.add(File("file-00000000", "default", "x", "batch", 1, 1.0, time.time() - 1))
    with pytest.raises(openai.NotFoundError):
        served.sdk().files.retrieve("file-00000000")
    assert [file.id for file in served.sdk().files.list()] == [made.id]


def test_names_that_will_not_do_are_refused_and_leave_nothing(served: Any) -> None:
    for name, said in (
        ("rows.csv", "Must be .jsonl: one JSON object a line"),
        ("rows.jsonl.gz", "unpack it"),
        ("rows", "Must be .jsonl"),
        ("a" * 250 + ".jsonl", "1 to 255 characters"),
    ):
        with pytest.raises(openai.BadRequestError, match=said):
            put(served, name)
    assert list((served.home / "files").iterdir()) == []


NAMES = [
    "../../../etc/cron.d/x.jsonl",
    "/etc/passwd.jsonl",
    "C:\\x\\y.jsonl",
    'a"b; filename=c.jsonl',
    "é 日本 \u202e.jsonl",
    "%2e%2e%2f.jsonl",
    ".jsonl.jsonl",
]


def test_a_name_is_only_ever_shown_and_never_becomes_a_path(served: Any) -> None:
    made = [put(served, name) for name in NAMES]
    assert [file.filename for file in made[4:]] == NAMES[4:]
    assert {path.name for path in (served.home / "files").iterdir()} == {file.id for file in made}
    for file in made:
        headers = served.sdk().files.content(file.id).response.headers
        assert headers["content-disposition"].startswith("attachment; filename")
        assert headers["content-disposition"].isascii()
        assert headers["x-content-type-options"] == "nosniff"


def test_another_projects_files_are_as_unknown_as_none(served: Any) -> None:
    made = put(served)
    stranger = served.stranger()
    assert stranger.files.list().data == []
    said = set()
    for file_id in (made.id, "file-unknown"):
        for call in (stranger.files.retrieve, stranger.files.content, stranger.files.delete):
            with pytest.raises(openai.NotFoundError) as caught:
                call(file_id)
            said.add(str(caught.value).replace(file_id, "ID"))
    assert len(said) == 1
    assert served.sdk().files.content(made.id).read() == b"{}\n"


def test_a_key_that_reads_may_not_write(served: Any) -> None:
    reader = served.stranger("read")
    assert reader.files.list().data == []
    with pytest.raises(openai.PermissionDeniedError, match="needs 'write'"):
        reader.files.create(file=("a.jsonl", b"{}"), purpose="fine-tune")


def test_a_file_that_an_open_job_needs_stays_and_its_copies_go_with_it(served: Any) -> None:
    client = served.sdk()
    made = put(served)
    job = client.fine_tuning.jobs.create(model="base", training_file=made.id)
    with pytest.raises(openai.ConflictError, match=f"{job.id}, which is validating_files"):
        client.files.delete(made.id)
    data = served.home / "jobs" / job.id / "data"
    data.mkdir(parents=True)
    for name in ("train.jsonl", "test.jsonl"):
        (data / name).write_text("{}")
    client.fine_tuning.jobs.cancel(job.id)
    client.files.delete(made.id)
    assert list(data.iterdir()) == []


@pytest.mark.parametrize(
    ("setting", "value", "status", "code"),
    [
        ("MAX_FILE_BYTES", 1000, 413, "file_too_large"),
        ("MAX_PROJECT_BYTES", 1000, 413, "exceeded_quota"),
        ("MIN_FREE_BYTES", 2**60, 429, "disk_full"),
    ],
)
def test_what_there_is_no_room_for_is_refused_with_the_reason(
    serving: Any, setting: str, value: int, status: int, code: str
) -> None:
    with serving(**{setting: value}) as served:
        with pytest.raises(openai.APIStatusError) as caught:
            put(served, content=b"x" * 2_000_000)
        assert (caught.value.status_code, caught.value.code) == (status, code)
        assert ("retry-after" in caught.value.response.headers) == (status == 429)
        assert list((served.home / "files").iterdir()) == []
        if status == 413:
            put(served, content=b"x" * 900)
        if code == "exceeded_quota":
            with pytest.raises(openai.APIStatusError, match="delete some"):
                put(served, content=b"x" * 200)


def test_wrong_queries_are_refused(served: Any) -> None:
    for query in ("limit=0", "limit=10001", "limit=abc", "order=up", "after=%00"):
        with pytest.raises(openai.BadRequestError):
            served.sdk().get(f"/files?{query}", cast_to=object)
    served.alive()
