"""What is remembered between commands: runs and models, and all that the API keeps.

SQLite in TUNESMITH_HOME unless a URL says otherwise. The schema belongs to migrations/; opening
looks at its version first, and Alembic is imported only when there is something to upgrade.
"""

from __future__ import annotations

from pathlib import Path

from tunesmith.settings import Settings
from tunesmith.store.answers import Answers
from tunesmith.store.database import connect
from tunesmith.store.files import Files
from tunesmith.store.jobs import Jobs
from tunesmith.store.keys import Keys
from tunesmith.store.leases import Leases
from tunesmith.store.models import Models, RegisteredModel, Run
from tunesmith.store.webhooks import Webhooks

__all__ = ["RegisteredModel", "Run", "Store"]


class Store(Models):
    """The database. As a context manager it is closed at the end of the block."""

    def __init__(self, url: str) -> None:
        """Open the database of a SQLAlchemy URL and bring its schema up to date.

        Raises:
            UsageError: it cannot be opened, or a newer tunesmith wrote it.
        """
        self.url = url
        super().__init__(connect(url))
        self.keys = Keys(self._engine)
        self.files = Files(self._engine)
        self.jobs = Jobs(self._engine)
        self.leases = Leases(self._engine)
        self.answers = Answers(self._engine)
        self.webhooks = Webhooks(self._engine)

    @classmethod
    def at(cls, home: Path) -> Store:
        """The database of the settings; without one the SQLite file of a TUNESMITH_HOME folder."""
        home.mkdir(parents=True, exist_ok=True)
        return cls(Settings.read(home).database or f"sqlite:///{home / 'tunesmith.db'}")

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()
