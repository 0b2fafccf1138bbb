"""The models that the server answers for: bases, and what runs and jobs have registered."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request

from tunesmith.api.pages import router
from tunesmith.api.who import who
from tunesmith.models.catalog import PACKAGED
from tunesmith.serve.router import Deployment
from tunesmith.serve.wire import Refusal, model_entry, unknown_model
from tunesmith.settings import HOSTED, Settings
from tunesmith.store import RegisteredModel, Store
from tunesmith.store.blobs import JOBS
from tunesmith.store.jobs import OPEN


class ModelRoutes:
    """/v1/models, and the way from a name to its deployment or to its base.

    Args:
        default: the base that is listed first and always there.
        home: TUNESMITH_HOME; other bases that have been fetched, and jobs, are in it.
    """

    def __init__(self, default: Deployment, store: Store, settings: Settings, home: Path) -> None:
        self._default, self._store = default, store
        self._settings, self._home = settings, home

    def routes(self) -> APIRouter:
        """The routes."""
        out = router()
        out.add_api_route("/models", self.list, methods=["GET"])
        out.add_api_route("/models/{name:path}", self.show, methods=["GET"])
        out.add_api_route("/models/{name:path}", self.remove, methods=["DELETE"])
        return out

    async def deployment(self, name: str, project: str) -> Deployment:
        """What serves `name` for a project.

        Raises:
            Refusal: no model that it may use has that name.
        """
        base = self._folders().get(self._settings.base_of(name, self._default.name) or name)
        if base is not None:
            return base
        return self._deployed(await self._registered(name, project))

    async def base(self, name: str, project: str) -> str:
        """The base that a job of that model trains, as `tunesmith.models.fetch.resolve` takes it.

        Raises:
            Refusal: there is none of that name, or it is tuned already.
        """
        bases = self._folders()
        found = self._settings.base_of(name, self._default.name)
        if found is not None or name in bases:
            base = bases.get(found or name)
            # A base that is neither in the catalogue nor from a hub is known by its folder alone.
            if base is not None and base.name not in PACKAGED and "/" not in base.name:
                return str(base.base_folder)
            return found or name
        tuned = await asyncio.to_thread(self._store.model, name, project)
        if tuned is not None:
            raise Refusal(
                f"'{name}' is tuned already, and jobs begin with a base: train '{tuned.base}' on all "
                "examples.",
                param="model",
                code="model_not_supported",
            )
        named = {*HOSTED, *self._settings.model_aliases}
        aliases = sorted(item for item in named if self._settings.base_of(item, "base"))
        raise Refusal(
            f"The model '{name}' is not there. There are {', '.join(bases)}; and names that stand for "
            f"one: {', '.join(aliases) or 'none'}. The setting model_aliases has more.",
            status=404,
            param="model",
            code="model_not_found",
        )

    async def owned(self, name: str, project: str) -> RegisteredModel:
        """A tuned model that is the project's own.

        Raises:
            Refusal: there is none, or it is shared with the project only.
        """
        row = await self._registered(name, project)
        if row.project != project:
            raise Refusal(
                f"The model '{name}' is not this project's own: what was trained at the command line "
                "goes with `tunesmith models remove`, what is shared stays its project's.",
                status=403,
                param="model",
                code="insufficient_permissions",
            )
        return row

    async def list(self, request: Request) -> dict[str, Any]:
        """GET /v1/models: bases first, then tuned models and checkpoints, newest first."""
        rows = await asyncio.to_thread(self._store.models, who(request).project)
        bases = self._folders()
        entries = [_base_entry(base) for base in bases.values()]
        entries += [self._entry(row) for row in rows if row.name not in bases]
        return {"object": "list", "data": entries}

    async def show(self, name: str, request: Request) -> dict[str, Any]:
        """GET /v1/models/{name}; a name that stands for a base is shown under that name."""
        base = self._folders().get(self._settings.base_of(name, self._default.name) or name)
        if base is not None:
            return _base_entry(base) | {"id": name}
        return self._entry(await self._registered(name, who(request).project))

    async def remove(self, name: str, request: Request) -> dict[str, Any]:
        """DELETE /v1/models/{name}, with its weights."""
        asker = who(request)
        asker.may("write")
        if self._settings.base_of(name, self._default.name) or name in self._folders():
            raise Refusal(
                f"'{name}' is a base; only fine-tuned models can be deleted.",
                status=403,
                param="model",
                code="insufficient_permissions",
            )
        row = await self.owned(name, asker.project)
        await asyncio.to_thread(self._remove, row)
        return {"id": name, "object": "model", "deleted": True}

    def _remove(self, row: RegisteredModel) -> None:
        job = None if row.job is None else self._store.jobs.get(row.job)
        if job is not None and job.status in OPEN:
            raise Refusal(
                f"The job {job.id}, which is {job.status}, may go on from '{row.name}'; cancel it first.",
                status=409,
                param="model",
                code="model_in_use",
            )
        self._store.remove_model(row.name, row.project)
        folder = _weights(row)
        shared = any(_weights(other) == folder for other in self._store.models())
        if not shared and folder.is_relative_to((self._home / JOBS).resolve()):
            shutil.rmtree(folder, ignore_errors=True)

    async def _registered(self, name: str, project: str) -> RegisteredModel:
        row = await asyncio.to_thread(self._store.model, name, project)
        if row is None:
            raise unknown_model(name)
        return row

    def _folders(self) -> dict[str, Deployment]:
        """The bases that are here."""
        folders = {name: self._home / "models" / name for name in PACKAGED}
        return {self._default.name: self._default} | {
            name: Deployment(name, name, folder, dtype=self._default.dtype)
            for name, folder in folders.items()
            if name != self._default.name and folder.is_dir()
        }

    def _deployed(self, row: RegisteredModel) -> Deployment:
        return Deployment.registered(
            row.name, row.base, row.base_folder, row.adapter_folder, dtype=self._default.dtype
        )

    def _entry(self, row: RegisteredModel) -> dict[str, Any]:
        entry = model_entry(row.name, int(row.created_at))
        return entry | {"owned_by": self._settings.organization}


def _base_entry(base: Deployment) -> dict[str, Any]:
    return model_entry(base.name, int(base.base_folder.stat().st_mtime))


def _weights(row: RegisteredModel) -> Path:
    """The folder that is this model's own."""
    return Path(row.adapter_folder or row.base_folder).resolve()
