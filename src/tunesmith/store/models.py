"""Runs, and the models that runs and jobs have registered."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import sqlalchemy as sa

from tunesmith.errors import UsageError
from tunesmith.store.tables import models, permissions, runs

RunState = Literal["running", "done", "failed"]


@dataclass(frozen=True, slots=True)
class Run:
    """One pass through the pipeline. Times are seconds since 1970, UTC."""

    id: str
    folder: str
    key: str
    """Hash of recipe and data: what makes two runs the same."""
    state: RunState
    created_at: float
    finished_at: float | None
    verdict_ship: bool | None
    sentence: str | None


@dataclass(frozen=True, slots=True)
class RegisteredModel:
    """A name that serves: a base's weights with an adapter, or where `adapter_folder` is None weights
    that are all its own, in `base_folder`.
    """

    name: str
    base: str
    base_hash: str
    base_folder: str
    adapter_folder: str | None
    run_id: str | None
    created_at: float
    project: str | None = None
    """Who may use it; None is everybody: what was trained at the command line."""
    job: str | None = None
    """The job that made it, if one did."""


class Models:
    """The tables of runs and models."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def add_run(self, run_id: str, *, folder: Path, key: str) -> Run:
        """Remember a run that starts now."""
        run = Run(run_id, str(folder), key, "running", time.time(), None, None, None)
        with self._engine.begin() as connection:
            connection.execute(sa.insert(runs).values(asdict(run)))
        return run

    def finish_run(
        self,
        run_id: str,
        *,
        state: RunState = "done",
        ship: bool | None = None,
        sentence: str | None = None,
    ) -> None:
        """Note how a run ended. A later call replaces what an earlier one said."""
        ended = {"state": state, "finished_at": time.time()}
        verdict = {"verdict_ship": ship, "sentence": sentence}
        with self._engine.begin() as connection:
            changed = connection.execute(
                sa.update(runs).where(runs.c.id == run_id).values(**ended, **verdict)
            )
        if changed.rowcount != 1:
            raise UsageError(f"there is no run {run_id}", expected="the id of a run in the store")

    def find_run(self, key: str) -> Run | None:
        """The newest run with this hash of recipe and data, finished or not."""
        found = self._runs(runs.c.key == key)
        return found[0] if found else None

    def runs(self) -> list[Run]:
        """All runs, newest first."""
        return self._runs(sa.true())

    def register_model(
        self,
        name: str,
        *,
        base: str,
        base_hash: str,
        base_folder: Path,
        adapter_folder: Path | None,
        run_id: str | None = None,
        project: str | None = None,
    ) -> RegisteredModel:
        """Make a name serve these weights; a name that is taken is replaced."""
        adapter = None if adapter_folder is None else str(adapter_folder)
        model = RegisteredModel(
            name, base, base_hash, str(base_folder), adapter, run_id, time.time(), project
        )
        with self._engine.begin() as connection:
            register(connection, model)
        return model

    def models(self, project: str | None = None) -> list[RegisteredModel]:
        """All registered models, newest first; of a project: those that it may use."""
        return self._models(sa.true() if project is None else usable(project))

    def model(self, name: str, project: str | None = None) -> RegisteredModel | None:
        """The model of that name, where the project may use it."""
        may = sa.true() if project is None else usable(project)
        found = self._models((models.c.name == name) & may)
        return found[0] if found else None

    def remove_model(self, name: str, project: str | None = None) -> bool:
        """Forget a model, and who else might use it; its files stay.

        False when the project has none of that name.
        """
        own = sa.true() if project is None else models.c.project == project
        with self._engine.begin() as connection:
            gone = connection.execute(sa.delete(models).where((models.c.name == name) & own))
            if gone.rowcount == 1:
                connection.execute(sa.delete(permissions).where(permissions.c.model == name))
        return gone.rowcount == 1

    def _runs(self, condition: sa.ColumnElement[bool]) -> list[Run]:
        query = sa.select(runs).where(condition).order_by(runs.c.created_at.desc(), runs.c.id)
        with self._engine.begin() as connection:
            return [Run(**row) for row in connection.execute(query).mappings()]

    def _models(self, condition: sa.ColumnElement[bool]) -> list[RegisteredModel]:
        query = sa.select(models).where(condition)
        query = query.order_by(models.c.created_at.desc(), models.c.name)
        with self._engine.begin() as connection:
            return [RegisteredModel(**row) for row in connection.execute(query).mappings()]


def register(connection: sa.Connection, model: RegisteredModel) -> None:
    """Make a name serve, in a transaction of the caller's."""
    connection.execute(sa.delete(models).where(models.c.name == model.name))
    connection.execute(sa.insert(models).values(asdict(model)))


def usable(project: str) -> sa.ColumnElement[bool]:
    """Its own models, everybody's, and the checkpoints that others have shared with it."""
    shared = sa.select(permissions.c.model).where(permissions.c.project == project)
    return models.c.project.is_(None) | (models.c.project == project) | models.c.name.in_(shared)
