"""Files and uploads: what they are called and whose they are. Their bytes lie elsewhere, by id."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import sqlalchemy as sa

from tunesmith.store.database import Page, alone, new_id, page
from tunesmith.store.jobs import OPEN
from tunesmith.store.tables import files, jobs, parts, uploads

UploadStatus = Literal["pending", "completed", "cancelled", "expired"]


@dataclass(frozen=True, slots=True)
class File:
    """A file of a project. Times are seconds since 1970, UTC."""

    id: str
    project: str
    filename: str
    purpose: str
    bytes: int
    created_at: float
    expires_at: float | None = None


@dataclass(frozen=True, slots=True)
class Upload:
    """A file that comes in parts."""

    id: str
    project: str
    filename: str
    purpose: str
    bytes: int
    """How many are to come."""
    status: UploadStatus
    created_at: float
    expires_at: float
    file_expires_after: int | None = None
    file: str | None = None
    """The file that it became."""


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of an upload."""

    id: str
    upload: str
    bytes: int
    created_at: float


class Files:
    """The tables of files and uploads. What is expired is not there any more."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def add(self, file: File, *, most: int | None = None) -> bool:
        """Remember a file whose bytes are in their place.

        Args:
            most: bytes that the project may have. False is returned when it would have more.
        """
        with self._engine.begin() as connection:
            if most is not None:
                alone(connection, f"files {file.project}")
                if _used(connection, file.project) + file.bytes > most:
                    return False
            connection.execute(sa.insert(files).values(asdict(file)))
        return True

    def get(self, project: str, file_id: str) -> File | None:
        """A file of the project."""
        wanted = (files.c.id == file_id) & (files.c.project == project) & _lasting(files)
        with self._engine.begin() as connection:
            rows, _ = page(connection, files, wanted, after=None, limit=1)
        return File(**rows[0]) if rows else None

    def list(
        self,
        project: str,
        *,
        purpose: str | None = None,
        after: str | None = None,
        limit: int = 10_000,
        ascending: bool = False,
    ) -> Page[File]:
        """Files of the project, newest first."""
        wanted = (files.c.project == project) & _lasting(files)
        if purpose is not None:
            wanted &= files.c.purpose == purpose
        with self._engine.begin() as connection:
            rows, more = page(
                connection, files, wanted, after=after, limit=limit, ascending=ascending
            )
        return Page(tuple(File(**row) for row in rows), more)

    def remove(self, project: str, file_id: str) -> bool:
        """Forget a file; False when the project has none of that id."""
        with self._engine.begin() as connection:
            gone = connection.execute(
                sa.delete(files).where((files.c.id == file_id) & (files.c.project == project))
            )
        return gone.rowcount == 1

    def used(self, project: str) -> int:
        """Bytes of all files of the project, and of what its uploads hold."""
        with self._engine.begin() as connection:
            return _used(connection, project)

    def known(self) -> set[str]:
        """Ids of everything whose bytes are still needed: files, and parts of open uploads."""
        pending = sa.select(uploads.c.id).where(uploads.c.status == "pending")
        with self._engine.begin() as connection:
            kept = set(connection.scalars(sa.select(files.c.id)))
            return kept | set(
                connection.scalars(sa.select(parts.c.id).where(parts.c.upload.in_(pending)))
            )

    def expire(self) -> list[str]:
        """Forget what has expired; the ids whose bytes can go. An open job keeps its files."""
        now = time.time()
        named = (jobs.c.training_file == files.c.id) | (jobs.c.validation_file == files.c.id)
        needed = sa.exists().where(named & jobs.c.status.in_(OPEN))
        late = (uploads.c.status == "pending") & (uploads.c.expires_at <= now)
        with self._engine.begin() as connection:
            gone = list(
                connection.scalars(
                    sa.delete(files)
                    .where((files.c.expires_at <= now) & ~needed)
                    .returning(files.c.id)
                )
            )
            lost = list(
                connection.scalars(
                    sa.update(uploads).where(late).values(status="expired").returning(uploads.c.id)
                )
            )
            gone += connection.scalars(sa.select(parts.c.id).where(parts.c.upload.in_(lost)))
        return gone

    def add_upload(self, upload: Upload) -> None:
        """Begin an upload."""
        with self._engine.begin() as connection:
            connection.execute(sa.insert(uploads).values(asdict(upload)))

    def upload(self, project: str, upload_id: str) -> Upload | None:
        """An upload of the project; one whose time is over is expired."""
        wanted = (uploads.c.id == upload_id) & (uploads.c.project == project)
        with self._engine.begin() as connection:
            rows, _ = page(connection, uploads, wanted, after=None, limit=1)
        if not rows:
            return None
        found = Upload(**rows[0])
        late = found.status == "pending" and found.expires_at <= time.time()
        return replace(found, status="expired") if late else found

    def add_part(self, upload: Upload, size: int, *, part_id: str | None = None) -> Part | None:
        """Add a part whose bytes are in their place; None when the upload is no longer open."""
        part = Part(part_id or new_id("part_"), upload.id, size, time.time())
        with self._engine.begin() as connection:
            status = connection.scalar(
                sa.select(uploads.c.status).where(uploads.c.id == upload.id).with_for_update()
            )
            if status != "pending":
                return None
            connection.execute(sa.insert(parts).values(asdict(part)))
        return part

    def parts(self, upload_id: str) -> dict[str, Part]:
        """The parts of an upload by their ids, in the order in which they came."""
        query = sa.select(parts).where(parts.c.upload == upload_id).order_by(parts.c.seq)
        with self._engine.begin() as connection:
            rows: Sequence[Any] = connection.execute(query).mappings().all()
        return {
            row["id"]: Part(row["id"], row["upload"], row["bytes"], row["created_at"])
            for row in rows
        }

    def complete(self, upload: Upload, file: File) -> bool:
        """Make the upload a file; False when it is no longer open."""
        with self._engine.begin() as connection:
            changed = _end(connection, upload, "completed", file=file.id)
            if changed:
                connection.execute(sa.insert(files).values(asdict(file)))
        return changed

    def cancel(self, upload: Upload) -> bool:
        """Give the upload up; False when it is no longer open."""
        with self._engine.begin() as connection:
            return _end(connection, upload, "cancelled")


def _used(connection: sa.Connection, project: str) -> int:
    held = sa.select(sa.func.coalesce(sa.func.sum(files.c.bytes), 0))
    coming = sa.select(sa.func.coalesce(sa.func.sum(parts.c.bytes), 0)).join_from(
        parts, uploads, parts.c.upload == uploads.c.id
    )
    open_ = (uploads.c.project == project) & (uploads.c.status == "pending")
    return int(
        (connection.scalar(held.where(files.c.project == project)) or 0)
        + (connection.scalar(coming.where(open_)) or 0)
    )


def _end(
    connection: sa.Connection, upload: Upload, status: UploadStatus, *, file: str | None = None
) -> bool:
    open_ = (uploads.c.id == upload.id) & (uploads.c.status == "pending")
    changed = connection.execute(sa.update(uploads).where(open_).values(status=status, file=file))
    return changed.rowcount == 1


def _lasting(table: sa.Table) -> sa.ColumnElement[bool]:
    return table.c.expires_at.is_(None) | (table.c.expires_at > time.time())
