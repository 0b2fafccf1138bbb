"""Who is told of ended jobs, and what is still to be told."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa

from tunesmith.store.database import new_id, put_once
from tunesmith.store.tables import deliveries, webhooks


@dataclass(frozen=True, slots=True)
class Webhook:
    """A URL of the project's that hears of its jobs; the secret signs what is sent."""

    id: str
    project: str
    url: str
    secret: str
    created_at: float


@dataclass(frozen=True, slots=True)
class Delivery:
    """One event on its way to one URL. `due_at` None: it arrived, or was given up."""

    id: str
    webhook: str
    body: dict[str, Any]
    created_at: float
    attempts: int
    due_at: float | None
    status: int | None = None
    """The HTTP status of the last answer."""


class Webhooks:
    """The tables of webhooks and of their deliveries."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def add(self, project: str, url: str, secret: str) -> Webhook:
        """Tell this URL from now on."""
        made = Webhook(new_id("we_"), project, url, secret, time.time())
        with self._engine.begin() as connection:
            connection.execute(sa.insert(webhooks).values(asdict(made)))
        return made

    def list(self, project: str | None = None) -> list[Webhook]:
        """Webhooks of a project, or all, oldest first."""
        own = sa.true() if project is None else webhooks.c.project == project
        names = [column for column in webhooks.c if column.name != "seq"]
        query = sa.select(*names).where(own).order_by(webhooks.c.seq)
        with self._engine.begin() as connection:
            return [Webhook(**row) for row in connection.execute(query).mappings()]

    def remove(self, webhook_id: str) -> bool:
        """Tell it no more; False when there is none of that id."""
        with self._engine.begin() as connection:
            gone = connection.execute(sa.delete(webhooks).where(webhooks.c.id == webhook_id))
        return gone.rowcount == 1

    def take(self, *, hold: float, limit: int = 10) -> list[tuple[Delivery, Webhook]]:
        """Deliveries that are due, put off by `hold` seconds so that nobody else takes them."""
        now = time.time()
        due = sa.select(deliveries.c.id).where(deliveries.c.due_at <= now)
        due = due.order_by(deliveries.c.due_at).limit(limit).with_for_update(skip_locked=True)
        with self._engine.begin() as connection:
            ids = list(connection.scalars(due))
            connection.execute(
                sa.update(deliveries)
                .where(deliveries.c.id.in_(ids))
                .values(due_at=now + hold, attempts=deliveries.c.attempts + 1)
            )
            names = [column for column in deliveries.c if column.name != "seq"]
            rows = connection.execute(sa.select(*names).where(deliveries.c.id.in_(ids))).mappings()
            taken = [Delivery(**row) for row in rows]
        hooks = {hook.id: hook for hook in self.list()}
        return [(item, hooks[item.webhook]) for item in taken if item.webhook in hooks]

    def settle(self, delivery: Delivery, *, status: int | None, due_at: float | None) -> None:
        """Note how an attempt went, and when the next one is due."""
        with self._engine.begin() as connection:
            connection.execute(
                sa.update(deliveries)
                .where(deliveries.c.id == delivery.id)
                .values(status=status, due_at=due_at)
            )


def announce(connection: sa.Connection, project: str, kind: str, subject: str) -> None:
    """Queue an event for the project's webhooks, once, in a transaction of the caller's."""
    now = time.time()
    for hook in connection.scalars(sa.select(webhooks.c.id).where(webhooks.c.project == project)):
        event_id = f"evt_{subject.partition('-')[2]}_{kind.rpartition('.')[2]}"
        body = {
            "id": event_id,
            "object": "event",
            "created_at": int(now),
            "type": kind,
            "data": {"id": subject},
        }
        made = Delivery(f"{event_id}_{hook[-12:]}", hook, body, now, 0, now)
        put_once(connection, deliveries, asdict(made))
