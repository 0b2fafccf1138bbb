"""/v1/files: uploaded to disk, listed, read back, deleted with all that was copied from them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tunesmith.api.multipart import Received, Room, full, receive, room
from tunesmith.api.pages import CONTROL, After, Order, listed, router, turn
from tunesmith.api.who import Who, who
from tunesmith.serve.wire import Refusal
from tunesmith.settings import Settings
from tunesmith.store import Store
from tunesmith.store.blobs import Blobs, remove_copies
from tunesmith.store.database import new_id
from tunesmith.store.files import File
from tunesmith.store.jobs import OPEN

Purpose = Literal["assistants", "batch", "fine-tune", "vision", "user_data", "evals"]
LONGEST_NAME = 255
TABLES = (".csv", ".tsv", ".xlsx", ".xls", ".parquet", ".json", ".txt")
PACKED = (".gz", ".zip", ".bz2", ".xz", ".zst", ".tar", ".tgz", ".7z")
MEDIA = {".jsonl": "application/jsonl", ".csv": "text/csv; charset=utf-8"}
M = TypeVar("M", bound=BaseModel)


class ExpiresAfter(BaseModel):
    """When a file goes by itself."""

    model_config = ConfigDict(extra="forbid")

    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=3_600, le=2_592_000)]


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid")

    purpose: Purpose
    expires_after: ExpiresAfter | None = None


FIELDS = frozenset({"purpose", "expires_after[anchor]", "expires_after[seconds]"})


class FileRoutes:
    """The routes of files."""

    def __init__(self, store: Store, blobs: Blobs, settings: Settings, home: Path) -> None:
        self._store, self._blobs, self._settings, self._home = store, blobs, settings, home

    def routes(self) -> APIRouter:
        """The routes."""
        out = router()
        out.add_api_route("/files", self.create, methods=["POST"])
        out.add_api_route("/files", self.list, methods=["GET"])
        out.add_api_route("/files/{file_id}", self.show, methods=["GET"])
        out.add_api_route("/files/{file_id}", self.remove, methods=["DELETE"])
        out.add_api_route(
            "/files/{file_id}/content", self.content, methods=["GET"], response_model=None
        )
        return out

    async def create(self, request: Request) -> dict[str, Any]:
        """POST /v1/files."""
        asker = who(request)
        asker.may("write")
        file_id = new_id("file-")
        allowed = await asyncio.to_thread(self._room, asker.project)
        received = await receive(
            request, self._blobs.scratch(file_id), file="file", fields=FIELDS, allowed=allowed
        )
        try:
            file = _file(file_id, asker.project, received)
            if not await asyncio.to_thread(self._keep, file):
                raise full(self._settings)
        finally:
            # It is there no more once it was placed.
            self._blobs.scratch(file_id).unlink(missing_ok=True)
        return file_body(file)

    async def list(
        self,
        request: Request,
        purpose: str | None = None,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
        order: Order = "desc",
        after: After = None,
    ) -> dict[str, Any]:
        """GET /v1/files."""
        page = await turn(
            lambda: self._store.files.list(
                who(request).project,
                purpose=purpose,
                after=after,
                limit=limit,
                ascending=order == "asc",
            )
        )
        return listed([file_body(file) for file in page.rows], has_more=page.has_more)

    async def show(self, file_id: str, request: Request) -> dict[str, Any]:
        """GET /v1/files/{file_id}."""
        return file_body(await self._found(who(request), file_id))

    async def content(self, file_id: str, request: Request) -> FileResponse:
        """GET /v1/files/{file_id}/content. No browser is to show it as a page of this server."""
        file = await self._found(who(request), file_id)
        path = self._blobs.path(file.id)
        try:
            found = await asyncio.to_thread(path.stat)
        except FileNotFoundError:
            raise _unknown(file_id) from None
        return FileResponse(
            path,
            media_type=MEDIA.get(_ending(file.filename), "application/octet-stream"),
            filename=file.filename,
            stat_result=found,
            headers={"x-content-type-options": "nosniff"},
        )

    async def remove(self, file_id: str, request: Request) -> dict[str, Any]:
        """DELETE /v1/files/{file_id}, with the rows that jobs have copied from it."""
        asker = who(request)
        asker.may("write")
        file = await self._found(asker, file_id)
        await asyncio.to_thread(self._remove, file)
        return {"id": file.id, "object": "file", "deleted": True}

    async def _found(self, asker: Who, file_id: str) -> File:
        file = await asyncio.to_thread(self._store.files.get, asker.project, file_id)
        if file is None:
            raise _unknown(file_id)
        return file

    def _room(self, project: str) -> Room:
        return room(self._settings, self._blobs.folder, self._store.files.used(project))

    def _keep(self, file: File) -> bool:
        self._blobs.place(file.id)
        if self._store.files.add(file, most=self._settings.max_project_bytes):
            return True
        self._blobs.remove(file.id)
        return False

    def _remove(self, file: File) -> None:
        readers = self._store.jobs.readers(file.id)
        for job, status in readers.items():
            if status in OPEN:
                raise Refusal(
                    f"File {file.id} is needed by the job {job}, which is {status}; cancel it first.",
                    status=409,
                    param="file_id",
                    code="file_in_use",
                )
        self._store.files.remove(file.project, file.id)
        self._blobs.remove(file.id)
        for job in readers:
            remove_copies(self._home, job)


def file_body(file: File) -> dict[str, Any]:
    """A file as the API shows it. `expires_at` is left out where there is none, as is contracted."""
    expires = {} if file.expires_at is None else {"expires_at": int(file.expires_at)}
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": int(file.created_at),
        **expires,
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
    }


def check_name(filename: str, purpose: str, *, param: str) -> None:
    """Refuse names that cannot be shown, and what is no JSONL among training files.

    Raises:
        Refusal: with what to do.
    """
    if not 0 < len(filename) <= LONGEST_NAME or CONTROL.search(filename):
        raise Refusal(
            f"A filename has 1 to {LONGEST_NAME} characters, and no control characters.",
            param=param,
            code="invalid_value",
        )
    ending = _ending(filename)
    if purpose != "fine-tune" or ending == ".jsonl":
        return
    said = "Invalid file format for Fine-Tuning API. Must be .jsonl"
    if ending in TABLES:
        said += ': one JSON object a line, each as {"messages": [{"role": ..., "content": ...}]}'
    if ending in PACKED:
        said += ": unpack it, and upload what is in it"
    raise Refusal(f"{said}.", param=param, code="invalid_file_format")


def expiry(now: float, after: ExpiresAfter | None) -> float | None:
    """When a file that is made now expires."""
    return None if after is None else now + after.seconds


def _file(file_id: str, project: str, received: Received) -> File:
    form = _read(_Form, received.fields)
    check_name(received.filename, form.purpose, param="file")
    now = time.time()
    expires = expiry(now, form.expires_after)
    return File(file_id, project, received.filename, form.purpose, received.bytes, now, expires)


def _read(model: type[M], fields: Mapping[str, str]) -> M:
    """The fields of a form, with a[b] as b in a."""
    values: dict[str, Any] = {}
    for name, value in fields.items():
        outer, _, inner = name.partition("[")
        if inner:
            values.setdefault(outer, {})[inner.removesuffix("]")] = value
        else:
            values[name] = value
    try:
        return model.model_validate(values)
    except ValidationError as error:
        found = [{**item, "loc": ("body", *item["loc"])} for item in error.errors()]
        raise RequestValidationError(found) from None


def _ending(filename: str) -> str:
    return Path(filename).suffix.lower()


def _unknown(file_id: str) -> Refusal:
    return Refusal(f"No such File object: {file_id}", status=404, param="id")
