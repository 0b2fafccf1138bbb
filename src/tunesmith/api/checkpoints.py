"""Permissions of checkpoints: which other projects may use them."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import Field

from tunesmith.api.models import ModelRoutes
from tunesmith.api.pages import After, Body, Limit, Name, listed, router, turn
from tunesmith.api.who import who
from tunesmith.serve.wire import Refusal
from tunesmith.store import Store
from tunesmith.store.jobs import Permission


class PermissionRequest(Body):
    """POST /v1/fine_tuning/checkpoints/{model}/permissions."""

    project_ids: Annotated[list[Name], Field(min_length=1, max_length=100)]


class CheckpointRoutes:
    """The routes of permissions; an admin's key is asked for."""

    def __init__(self, store: Store, models: ModelRoutes) -> None:
        self._store, self._models = store, models

    def routes(self) -> APIRouter:
        """The routes."""
        out = router()
        at = "/fine_tuning/checkpoints/{model:path}/permissions"
        out.add_api_route(at, self.list, methods=["GET"])
        out.add_api_route(at, self.add, methods=["POST"])
        out.add_api_route(at + "/{permission_id}", self.remove, methods=["DELETE"])
        return out

    async def list(
        self,
        model: str,
        request: Request,
        project_id: str | None = None,
        after: After = None,
        limit: Limit = 10,
        order: Literal["ascending", "descending"] = "descending",
    ) -> dict[str, Any]:
        """GET /v1/fine_tuning/checkpoints/{model}/permissions."""
        await self._owned(model, request)
        page = await turn(
            lambda: self._store.jobs.permissions(
                model,
                project=project_id,
                after=after,
                limit=limit,
                ascending=order == "ascending",
            )
        )
        return listed([_body(item) for item in page.rows], has_more=page.has_more)

    async def add(self, model: str, body: PermissionRequest, request: Request) -> dict[str, Any]:
        """POST /v1/fine_tuning/checkpoints/{model}/permissions; what is there already stays."""
        await self._owned(model, request)
        known = await asyncio.to_thread(self._store.keys.projects)
        for place, project in enumerate(body.project_ids):
            if project not in known:
                raise Refusal(
                    f"There is no project {project!r}: projects are named by their ids, as "
                    "`tunesmith keys list` shows them.",
                    param=f"project_ids[{place}]",
                    code="invalid_value",
                )
        chosen = tuple(dict.fromkeys(body.project_ids))
        made = await asyncio.to_thread(self._store.jobs.permit, model, chosen)
        return listed([_body(item) for item in made], has_more=False)

    async def remove(self, model: str, permission_id: str, request: Request) -> dict[str, Any]:
        """DELETE /v1/fine_tuning/checkpoints/{model}/permissions/{permission_id}."""
        await self._owned(model, request)
        if not await asyncio.to_thread(self._store.jobs.forbid, model, permission_id):
            raise Refusal(
                f"No such checkpoint permission: {permission_id}",
                status=404,
                param="permission_id",
            )
        return {"id": permission_id, "object": "checkpoint.permission", "deleted": True}

    async def _owned(self, model: str, request: Request) -> None:
        asker = who(request)
        asker.may("admin")
        await self._models.owned(model, asker.project)


def _body(item: Permission) -> dict[str, Any]:
    return {
        "id": item.id,
        "object": "checkpoint.permission",
        "created_at": int(item.created_at),
        "project_id": item.project,
    }
