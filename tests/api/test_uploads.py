from __future__ import annotations

import hashlib
import io
import time
from typing import Any

import openai
import pytest

from tunesmith.store.files import Upload


def begin(served: Any, size: int = 10, **more: Any) -> Any:
    wanted = {"filename": "a.jsonl", "mime_type": "application/jsonl", "purpose": "fine-tune"}
    return served.sdk().uploads.create(bytes=size, **{**wanted, **more})


def test_a_file_comes_in_parts_as_the_package_sends_it(served: Any, conforms: Any) -> None:
    content = bytes(range(256)) * 40
    upload = served.sdk().uploads.upload_file_chunked(
        file=content,
        filename="a.jsonl",
        bytes=len(content),
        mime_type="application/jsonl",
        purpose="fine-tune",
        part_size=1_000,
        md5=hashlib.md5(content).hexdigest(),
    )
    assert upload.status == "completed"
    assert served.sdk().files.content(upload.file.id).read() == content
    assert [path.name for path in (served.home / "files").iterdir()] == [upload.file.id]
    conforms("Upload", upload.to_dict(mode="json"))


def test_parts_may_come_in_any_order_and_the_end_is_told_twice(served: Any, conforms: Any) -> None:
    parts = served.sdk().uploads.parts
    begun = begin(served, expires_after={"anchor": "created_at", "seconds": 7200})
    assert (begun.status, begun.expires_at - begun.created_at) == ("pending", 3600)
    conforms("Upload", begun.to_dict(mode="json"))
    second = parts.create(begun.id, data=b"world")
    spare = parts.create(begun.id, data=io.BytesIO(b"unused"))
    first = parts.create(begun.id, data=b"hello")
    conforms("UploadPart", spare.to_dict(mode="json"))
    ids = [first.id, second.id]
    ends = [served.sdk().uploads.complete(begun.id, part_ids=ids) for _ in range(2)]
    assert ends[0].file == ends[1].file
    assert ends[0].file.expires_at == ends[0].file.created_at + 7200
    assert served.sdk().files.content(ends[0].file.id).read() == b"helloworld"
    assert len(list((served.home / "files").iterdir())) == 1


def test_parts_that_do_not_make_the_file_are_refused_and_the_upload_goes_on(served: Any) -> None:
    uploads = served.sdk().uploads
    begun, other = begin(served), begin(served)
    one, two = (uploads.parts.create(begun.id, data=data) for data in (b"hello", b"world"))
    foreign = uploads.parts.create(other.id, data=b"world")
    for ids, said in (
        ([one.id], "have 5 bytes; the upload is of 10"),
        ([one.id, one.id], "named twice"),
        ([one.id, foreign.id], f"No such UploadPart object: {foreign.id}"),
        ([one.id, "../../x\u0001"], "control characters"),
        (["x" * 10_000], "No such UploadPart"),
        ([], "part_ids"),
    ):
        with pytest.raises(openai.BadRequestError, match=said):
            uploads.complete(begun.id, part_ids=ids)
    with pytest.raises(openai.BadRequestError, match="has the MD5"):
        uploads.complete(begun.id, part_ids=[one.id, two.id], md5="0" * 32)
    with pytest.raises(openai.BadRequestError, match="md5"):
        uploads.complete(begun.id, part_ids=[one.id, two.id], md5="x")
    assert len(list((served.home / "files").iterdir())) == 3
    assert uploads.complete(begun.id, part_ids=[one.id, two.id]).status == "completed"


def test_an_upload_that_is_over_takes_nothing_more(served: Any, conforms: Any) -> None:
    uploads = served.sdk().uploads
    begun = begin(served)
    part = uploads.parts.create(begun.id, data=b"helloworld")
    ended = uploads.cancel(begun.id)
    assert ended.status == "cancelled"
    conforms("Upload", ended.to_dict(mode="json"))
    assert list((served.home / "files").iterdir()) == []
    late = Upload("upload_x", "default", "a", "batch", 1, "pending", 1.0, time.time() - 1)
    served.store.files.add_upload(late)
    for upload_id, status in ((begun.id, "cancelled"), (late.id, "expired")):
        for call in (
            lambda known: uploads.parts.create(known, data=b"x"),
            lambda known: uploads.complete(known, part_ids=[part.id]),
            uploads.cancel,
        ):
            with pytest.raises(openai.BadRequestError, match=f"is {status}"):
                call(upload_id)


def test_another_projects_uploads_are_as_unknown_as_none(served: Any) -> None:
    uploads = served.stranger().uploads
    for upload_id in (begin(served).id, "upload_x", "x" * 5_000):
        for call in (
            lambda known: uploads.parts.create(known, data=b"x"),
            lambda known: uploads.complete(known, part_ids=["part_0"]),
            uploads.cancel,
        ):
            with pytest.raises(openai.NotFoundError, match=f"No such Upload object: {upload_id}"):
                call(upload_id)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"size": 0}, "bytes"),
    ({"size": 2**40}, "at most"),
    ({"filename": "a.csv"}, "Must be .jsonl"),
    ({"filename": ""}, "1 to 255"),
    ({"filename": "a\u0001.jsonl"}, "no control characters"),
    ({"purpose": "fine-tune-results"}, "purpose"),
    ({"mime_type": "a\u0001"}, "mime_type"),
    ({"expires_after": {"anchor": "created_at", "seconds": 1}}, "expires_after"),
]


def test_uploads_that_will_not_do_are_refused_before_they_begin(served: Any) -> None:
    for wrong, said in WRONG:
        with pytest.raises(openai.APIStatusError, match=said) as caught:
            begin(served, **wrong)
        assert caught.value.status_code in (400, 413)
