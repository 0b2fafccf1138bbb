"""Stored completions: what was asked with `store`, and what was answered."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa

from tunesmith.store.database import Page, has, page
from tunesmith.store.tables import completions


@dataclass(frozen=True, slots=True)
class StoredCompletion:
    """One chat completion. `messages` are the request's, `body` is the answer as it was sent."""

    id: str
    project: str
    model: str
    metadata: dict[str, str] | None
    messages: list[dict[str, Any]]
    body: dict[str, Any]
    created_at: float
    expires_at: float


class Answers:
    """The table of stored completions. What is expired is not there any more."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def add(self, completion: StoredCompletion) -> None:
        """Keep a completion."""
        with self._engine.begin() as connection:
            connection.execute(sa.insert(completions).values(asdict(completion)))

    def get(self, project: str, completion_id: str) -> StoredCompletion | None:
        """A completion of the project."""
        wanted = _own(project) & (completions.c.id == completion_id)
        with self._engine.begin() as connection:
            rows, _ = page(connection, completions, wanted, after=None, limit=1)
        return StoredCompletion(**rows[0]) if rows else None

    def list(
        self,
        project: str,
        *,
        model: str | None = None,
        metadata: Mapping[str, str] | None = None,
        after: str | None = None,
        limit: int = 20,
        ascending: bool = True,
    ) -> Page[StoredCompletion]:
        """Completions of the project: of a model, and with at least these metadata."""
        wanted = _own(project)
        if model is not None:
            wanted &= completions.c.model == model
        wanted &= has(completions.c.metadata, metadata or {}, self._engine.dialect.name)
        with self._engine.begin() as connection:
            rows, more = page(
                connection, completions, wanted, after=after, limit=limit, ascending=ascending
            )
        return Page(tuple(StoredCompletion(**row) for row in rows), more)

    def change(
        self, project: str, completion_id: str, metadata: Mapping[str, str] | None
    ) -> StoredCompletion | None:
        """Replace a completion's metadata."""
        wanted = _own(project) & (completions.c.id == completion_id)
        with self._engine.begin() as connection:
            connection.execute(
                sa.update(completions)
                .where(wanted)
                .values(metadata=None if metadata is None else dict(metadata))
            )
        return self.get(project, completion_id)

    def remove(self, project: str, completion_id: str) -> bool:
        """Forget a completion; False when the project has none of that id."""
        wanted = _own(project) & (completions.c.id == completion_id)
        with self._engine.begin() as connection:
            return connection.execute(sa.delete(completions).where(wanted)).rowcount == 1

    def expire(self) -> int:
        """Forget what has expired; how many."""
        late = completions.c.expires_at <= time.time()
        with self._engine.begin() as connection:
            return connection.execute(sa.delete(completions).where(late)).rowcount


def _own(project: str) -> sa.ColumnElement[bool]:
    return (completions.c.project == project) & (completions.c.expires_at > time.time())
