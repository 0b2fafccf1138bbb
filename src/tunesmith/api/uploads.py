"""/v1/uploads: files in parts, in any order and over any time of an hour, put together at the end."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import Field

from tunesmith.api.files import ExpiresAfter, Purpose, check_name, file_body
from tunesmith.api.multipart import Room, disk_full, receive, room
from tunesmith.api.pages import Body, Name, Plain, router
from tunesmith.api.who import Who, who
from tunesmith.serve.wire import Refusal
from tunesmith.settings import MIB, Settings
from tunesmith.store import Store
from tunesmith.store.blobs import Blobs
from tunesmith.store.database import new_id
from tunesmith.store.files import File, Part, Upload

PART_BYTES = 64 * MIB
OPEN_SECONDS = 3_600


class UploadRequest(Body):
    """POST /v1/uploads."""

    filename: str
    purpose: Purpose
    bytes: Annotated[int, Field(ge=1)]
    mime_type: Name
    expires_after: ExpiresAfter | None = None


class CompleteRequest(Body):
    """POST /v1/uploads/{upload_id}/complete."""

    part_ids: Annotated[list[Plain], Field(min_length=1)]
    md5: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{32}$")] | None = None


class UploadRoutes:
    """The routes of uploads."""

    def __init__(self, store: Store, blobs: Blobs, settings: Settings) -> None:
        self._files, self._blobs, self._settings = store.files, blobs, settings

    def routes(self) -> APIRouter:
        """The routes."""
        out = router()
        out.add_api_route("/uploads", self.create, methods=["POST"])
        for name, route in (
            ("parts", self.add_part),
            ("complete", self.complete),
            ("cancel", self.cancel),
        ):
            out.add_api_route(f"/uploads/{{upload_id}}/{name}", route, methods=["POST"])
        return out

    async def create(self, body: UploadRequest, request: Request) -> dict[str, Any]:
        """POST /v1/uploads."""
        asker = who(request)
        asker.may("write")
        check_name(body.filename, body.purpose, param="filename")
        allowed = await asyncio.to_thread(self._room, asker.project, self._settings.max_file_bytes)
        if body.bytes > allowed.bytes:
            raise allowed.refusal
        now = time.time()
        upload = Upload(
            new_id("upload_"),
            asker.project,
            body.filename,
            body.purpose,
            body.bytes,
            "pending",
            now,
            now + OPEN_SECONDS,
            None if body.expires_after is None else body.expires_after.seconds,
        )
        await asyncio.to_thread(self._files.add_upload, upload)
        return _body(upload)

    async def add_part(self, upload_id: str, request: Request) -> dict[str, Any]:
        """POST /v1/uploads/{upload_id}/parts."""
        upload = await self._pending(who(request), upload_id)
        part_id = new_id("part_")
        allowed = await asyncio.to_thread(self._room, upload.project, PART_BYTES)
        received = await receive(
            request, self._blobs.scratch(part_id), file="data", fields=(), allowed=allowed
        )
        await asyncio.to_thread(self._blobs.place, part_id)
        part = await asyncio.to_thread(
            self._files.add_part, upload, received.bytes, part_id=part_id
        )
        if part is None:
            self._blobs.remove(part_id)
            raise await self._over(who(request), upload_id)
        return {
            "id": part.id,
            "object": "upload.part",
            "created_at": int(part.created_at),
            "upload_id": upload.id,
        }

    async def complete(
        self, upload_id: str, body: CompleteRequest, request: Request
    ) -> dict[str, Any]:
        """POST /v1/uploads/{upload_id}/complete; sent again, it is answered as the first time."""
        asker = who(request)
        asker.may("write")
        upload = await self._found(asker, upload_id)
        if upload.status == "pending":
            await asyncio.to_thread(self._complete, upload, body)
            upload = await self._found(asker, upload_id)
        if upload.status != "completed":
            raise _not_open(upload)
        file = await asyncio.to_thread(self._files.get, asker.project, upload.file or "")
        return _body(upload, file)

    async def cancel(self, upload_id: str, request: Request) -> dict[str, Any]:
        """POST /v1/uploads/{upload_id}/cancel."""
        upload = await self._pending(who(request), upload_id)
        if not await asyncio.to_thread(self._files.cancel, upload):
            raise await self._over(who(request), upload_id)
        await asyncio.to_thread(self._forget, upload)
        return _body(replace(upload, status="cancelled"))

    async def _found(self, asker: Who, upload_id: str) -> Upload:
        upload = await asyncio.to_thread(self._files.upload, asker.project, upload_id)
        if upload is None:
            raise Refusal(f"No such Upload object: {upload_id}", status=404, param="upload_id")
        return upload

    async def _pending(self, asker: Who, upload_id: str) -> Upload:
        asker.may("write")
        upload = await self._found(asker, upload_id)
        if upload.status != "pending":
            raise _not_open(upload)
        return upload

    async def _over(self, asker: Who, upload_id: str) -> Refusal:
        return _not_open(await self._found(asker, upload_id))

    def _room(self, project: str, most: int) -> Room:
        return room(self._settings, self._blobs.folder, self._files.used(project), most=most)

    def _complete(self, upload: Upload, body: CompleteRequest) -> None:
        """Put the parts together; the upload stays open where they do not fit.

        One that somebody else has ended meanwhile is left as it is.
        """
        chosen = _chosen(self._files.parts(upload.id), upload, body.part_ids)
        now, after = time.time(), upload.file_expires_after
        file = File(
            new_id("file-"),
            upload.project,
            upload.filename,
            upload.purpose,
            upload.bytes,
            now,
            None if after is None else now + after,
        )
        try:
            md5 = self._join(file.id, chosen)
            if body.md5 is not None and md5 != body.md5.lower():
                raise Refusal(
                    f"The file has the MD5 {md5}, not {body.md5}: send again what was damaged.",
                    param="md5",
                    code="checksum_mismatch",
                )
            self._blobs.place(file.id)
        except FileNotFoundError:
            return
        except OSError:
            raise disk_full() from None
        finally:
            self._blobs.scratch(file.id).unlink(missing_ok=True)
        if self._files.complete(upload, file):
            self._forget(upload)
        else:
            self._blobs.remove(file.id)

    def _join(self, file_id: str, parts: Iterable[Part]) -> str:
        """The MD5 of the parts, one after another in one file."""
        digest = hashlib.md5(usedforsecurity=False)
        with self._blobs.scratch(file_id).open("wb") as out:
            for part in parts:
                with self._blobs.path(part.id).open("rb") as piece:
                    while block := piece.read(MIB):
                        digest.update(block)
                        out.write(block)
        return digest.hexdigest()

    def _forget(self, upload: Upload) -> None:
        for part in self._files.parts(upload.id):
            self._blobs.remove(part)


def _chosen(parts: dict[str, Part], upload: Upload, ids: Sequence[str]) -> list[Part]:
    chosen: dict[str, Part] = {}
    for place, part_id in enumerate(ids):
        if part_id not in parts or part_id in chosen:
            known = part_id in chosen
            said = "The part {} is named twice." if known else "No such UploadPart object: {}"
            raise Refusal(
                said.format(part_id[:64]), param=f"part_ids[{place}]", code="invalid_part"
            )
        chosen[part_id] = parts[part_id]
    found = sum(part.bytes for part in chosen.values())
    if found != upload.bytes:
        raise Refusal(
            f"These parts have {found:,} bytes; the upload is of {upload.bytes:,}.",
            param="part_ids",
            code="invalid_upload_size",
        )
    return list(chosen.values())


def _not_open(upload: Upload) -> Refusal:
    return Refusal(
        f"Upload {upload.id} is {upload.status}: only a pending one takes parts or ends.",
        param="upload_id",
        code="invalid_upload_status",
    )


def _body(upload: Upload, file: File | None = None) -> dict[str, Any]:
    made = {} if file is None else {"file": file_body(file)}
    return {
        "id": upload.id,
        "object": "upload",
        "bytes": upload.bytes,
        "created_at": int(upload.created_at),
        "expires_at": int(upload.expires_at),
        "filename": upload.filename,
        "purpose": upload.purpose,
        "status": upload.status,
        **made,
    }
