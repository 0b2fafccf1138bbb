"""Stored chat completions: kept on request, listed, read back, labelled, deleted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request

from tunesmith.api.pages import After, Body, Limit, Order, labels, listed, router, turn
from tunesmith.api.who import Who, who
from tunesmith.errors import UsageError
from tunesmith.serve.wire import Refusal
from tunesmith.serve.wire_tools import Metadata
from tunesmith.settings import Settings
from tunesmith.store import Store
from tunesmith.store.answers import StoredCompletion
from tunesmith.store.database import Page

DAY = 86_400


class ChangeRequest(Body):
    """POST /v1/chat/completions/{completion_id}."""

    metadata: Metadata | None


class AnswerRoutes:
    """The routes of stored completions."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self._answers, self._settings = store.answers, settings

    def routes(self) -> APIRouter:
        """The routes."""
        out = router()
        at = "/chat/completions"
        out.add_api_route(at, self.list, methods=["GET"])
        out.add_api_route(at + "/{completion_id}", self.show, methods=["GET"])
        out.add_api_route(at + "/{completion_id}", self.change, methods=["POST"])
        out.add_api_route(at + "/{completion_id}", self.remove, methods=["DELETE"])
        out.add_api_route(at + "/{completion_id}/messages", self.messages, methods=["GET"])
        return out

    async def keep(self, asker: Who, request: Mapping[str, Any], answer: dict[str, Any]) -> None:
        """Keep a completion that was asked for with `store`, as long as the settings say.

        Args:
            request: the body of the request.
            answer: the body of the answer.
        """
        now = time.time()
        kept = StoredCompletion(
            id=answer["id"],
            project=asker.project,
            model=answer["model"],
            metadata=request.get("metadata") or None,
            messages=request["messages"],
            body=answer,
            created_at=now,
            expires_at=now + self._settings.completion_days * DAY,
        )
        await asyncio.to_thread(self._answers.add, kept)

    async def list(
        self,
        request: Request,
        model: str | None = None,
        after: After = None,
        limit: Limit = 20,
        order: Order = "asc",
    ) -> dict[str, Any]:
        """GET /v1/chat/completions."""
        page = await turn(
            lambda: self._answers.list(
                who(request).project,
                model=model,
                metadata=labels(request),
                after=after,
                limit=limit,
                ascending=order == "asc",
            )
        )
        return listed([_body(item) for item in page.rows], has_more=page.has_more)

    async def show(self, completion_id: str, request: Request) -> dict[str, Any]:
        """GET /v1/chat/completions/{completion_id}."""
        return _body(await self._found(who(request), completion_id))

    async def change(
        self, completion_id: str, body: ChangeRequest, request: Request
    ) -> dict[str, Any]:
        """POST /v1/chat/completions/{completion_id}: its metadata."""
        asker = who(request)
        asker.may("write")
        changed = await asyncio.to_thread(
            self._answers.change, asker.project, completion_id, body.metadata or None
        )
        if changed is None:
            raise _unknown(completion_id)
        return _body(changed)

    async def remove(self, completion_id: str, request: Request) -> dict[str, Any]:
        """DELETE /v1/chat/completions/{completion_id}."""
        asker = who(request)
        asker.may("write")
        if not await asyncio.to_thread(self._answers.remove, asker.project, completion_id):
            raise _unknown(completion_id)
        return {"id": completion_id, "object": "chat.completion.deleted", "deleted": True}

    async def messages(
        self,
        completion_id: str,
        request: Request,
        after: After = None,
        limit: Limit = 20,
        order: Order = "asc",
    ) -> dict[str, Any]:
        """GET /v1/chat/completions/{completion_id}/messages."""
        kept = await self._found(who(request), completion_id)
        entries = [_message(kept.id, place, item) for place, item in enumerate(kept.messages)]
        if order == "desc":
            entries.reverse()
        page = await turn(lambda: _behind(entries, after, limit))
        return listed(page.rows, has_more=page.has_more)

    async def _found(self, asker: Who, completion_id: str) -> StoredCompletion:
        kept = await asyncio.to_thread(self._answers.get, asker.project, completion_id)
        if kept is None:
            raise _unknown(completion_id)
        return kept


def _behind(entries: list[dict[str, Any]], after: str | None, limit: int) -> Page[dict[str, Any]]:
    ids = [entry["id"] for entry in entries]
    if after is not None and after not in ids:
        raise UsageError(f"there is no {after!r} in this list")
    start = 0 if after is None else ids.index(after) + 1
    return Page(tuple(entries[start : start + limit]), start + limit < len(entries))


def _body(item: StoredCompletion) -> dict[str, Any]:
    return item.body | {"metadata": item.metadata}


def _message(completion: str, place: int, message: Mapping[str, Any]) -> dict[str, Any]:
    """A message of the request; content in parts is under a name of its own."""
    content = message.get("content")
    parts = content if isinstance(content, list) else None
    return {
        "refusal": None,
        **message,
        "id": f"{completion}-{place}",
        "content": None if parts is not None else content,
        "content_parts": parts,
    }


def _unknown(completion_id: str) -> Refusal:
    return Refusal(
        f"No stored chat completion found with id '{completion_id}'.",
        status=404,
        param="completion_id",
    )
