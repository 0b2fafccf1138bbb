"""The models that the server answers for: the default base, and what runs have registered."""

from __future__ import annotations

import asyncio
from typing import Any

from tunesmith.serve.router import Deployment
from tunesmith.serve.wire import model_entry, unknown_model
from tunesmith.store import RegisteredModel, Store


class ModelRoutes:
    """/v1/models, and the way from a name to its deployment."""

    def __init__(self, default: Deployment, store: Store) -> None:
        self._default, self._store = default, store

    async def deployment(self, name: str) -> Deployment:
        """What serves `name`.

        Raises:
            Refusal: no model has that name.
        """
        if name == self._default.name:
            return self._default
        return self._deployed(await self._registered(name))

    async def list_models(self) -> dict[str, Any]:
        """GET /v1/models: the default base first, then registered models, newest first."""
        rows = await asyncio.to_thread(self._store.models)
        entries = [_registered_entry(row) for row in rows if row.name != self._default.name]
        return {"object": "list", "data": [self._default_entry(), *entries]}

    async def show_model(self, name: str) -> dict[str, Any]:
        """GET /v1/models/{name}."""
        if name == self._default.name:
            return self._default_entry()
        return _registered_entry(await self._registered(name))

    async def _registered(self, name: str) -> RegisteredModel:
        row = await asyncio.to_thread(self._store.model, name)
        if row is None:
            raise unknown_model(name)
        return row

    def _deployed(self, row: RegisteredModel) -> Deployment:
        return Deployment.registered(
            row.name, row.base, row.base_folder, row.adapter_folder, dtype=self._default.dtype
        )

    def _default_entry(self) -> dict[str, Any]:
        return model_entry(self._default.name, int(self._default.base_folder.stat().st_mtime))


def _registered_entry(row: RegisteredModel) -> dict[str, Any]:
    return model_entry(row.name, int(row.created_at))
