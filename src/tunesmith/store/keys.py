"""Who may: projects, their keys, and the log of every change."""

from __future__ import annotations

import hashlib
import secrets
import time
from dataclasses import asdict, dataclass
from typing import Any, Literal

import sqlalchemy as sa

from tunesmith.store.database import new_id
from tunesmith.store.tables import audit, keys, projects

Role = Literal["admin", "write", "read"]
DEFAULT = "default"
"""The project of whoever needs no key."""
PREFIX = "sk-tune-"
"""How every key begins."""


@dataclass(frozen=True, slots=True)
class Key:
    """An API key: its hash and what it opens. The key itself is shown once and not kept."""

    id: str
    project: str
    name: str
    role: Role
    hint: str
    """The first characters of the key, to tell it by."""
    created_at: float
    revoked_at: float | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the audit log."""

    at: float
    project: str
    key: str | None
    action: str
    subject: str
    request: str | None = None


class Keys:
    """The tables of projects, keys and the audit log."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        # Keys are looked up while others write.
        self._reading = engine.execution_options(reads=True)

    def make(self, name: str, *, project: str = DEFAULT, role: Role = "write") -> tuple[Key, str]:
        """A new key of a project, which is made when it is not there; and the secret itself."""
        secret = f"{PREFIX}{secrets.token_urlsafe(32)}"
        with self._engine.begin() as connection:
            known = connection.scalar(sa.select(projects.c.id).where(projects.c.name == project))
            if known is None:
                known = new_id("proj_")
                row = {"id": known, "name": project, "created_at": time.time()}
                connection.execute(sa.insert(projects).values(row))
            key = Key(new_id("key_"), known, name, role, secret[:12], time.time())
            connection.execute(sa.insert(keys).values({**asdict(key), "hash": _hash(secret)}))
        return key, secret

    def find(self, secret: str) -> Key | None:
        """The key of that secret, unless it was revoked."""
        wanted = (keys.c.hash == _hash(secret)) & keys.c.revoked_at.is_(None)
        found = self._keys(wanted)
        return found[0] if found else None

    def list(self) -> list[Key]:
        """All keys, newest first, revoked ones too."""
        return self._keys(sa.true())

    def projects(self) -> dict[str, str]:
        """Names by id."""
        with self._reading.begin() as connection:
            rows = connection.execute(sa.select(projects.c.id, projects.c.name))
            return {row.id: row.name for row in rows}

    def revoke(self, key_id: str) -> bool:
        """Close a key for good; False when there is no open one of that id."""
        open_ = (keys.c.id == key_id) & keys.c.revoked_at.is_(None)
        with self._engine.begin() as connection:
            changed = connection.execute(
                sa.update(keys).where(open_).values(revoked_at=time.time())
            )
        return changed.rowcount == 1

    def note(self, entry: Entry) -> None:
        """Write a line of the audit log."""
        with self._engine.begin() as connection:
            connection.execute(sa.insert(audit).values(asdict(entry)))

    def log(self, limit: int = 100) -> list[Entry]:
        """The newest lines of the audit log, newest first."""
        query = sa.select(audit).order_by(audit.c.seq.desc()).limit(limit)
        with self._engine.begin() as connection:
            return [Entry(**_own(row)) for row in connection.execute(query).mappings()]

    def _keys(self, condition: sa.ColumnElement[bool]) -> list[Key]:
        query = sa.select(keys).where(condition).order_by(keys.c.seq.desc())
        with self._reading.begin() as connection:
            return [
                Key(**{name: value for name, value in _own(row).items() if name != "hash"})
                for row in connection.execute(query).mappings()
            ]


def _own(row: Any) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "seq"}


def _hash(secret: str) -> str:
    # 256 random bits need no salt and no slow hash.
    return hashlib.sha256(secret.encode()).hexdigest()
