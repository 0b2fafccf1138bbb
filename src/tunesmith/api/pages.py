"""What the routes share: lists in pages as the openai package turns them, and texts that are kept."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Query
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from starlette.requests import Request

from tunesmith.errors import UsageError
from tunesmith.serve.body import StrictRoute
from tunesmith.serve.wire import Refusal
from tunesmith.store.database import Page

T = TypeVar("T")
CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
"""Control characters and halves of characters."""


def _plain(text: str) -> str:
    if CONTROL.search(text):
        raise ValueError("control characters are refused")
    return text


Plain = Annotated[str, AfterValidator(_plain)]
"""Text that databases, headers and logs can carry."""
Name = Annotated[Plain, Field(min_length=1, max_length=255)]
After = Annotated[str | None, Query()]
Limit = Annotated[int, Query(ge=1, le=100)]
Order = Literal["asc", "desc"]


class Body(BaseModel):
    """A request's JSON body; what it does not know it refuses."""

    model_config = ConfigDict(extra="forbid", strict=True)


def router() -> APIRouter:
    """Routes under /v1."""
    return APIRouter(prefix="/v1", route_class=StrictRoute)


async def turn(call: Callable[[], Page[T]]) -> Page[T]:
    """A page, read in a thread.

    Raises:
        Refusal: `after` names nothing that is in the list.
    """
    try:
        return await asyncio.to_thread(call)
    except UsageError as error:
        raise Refusal(f"{error}.", param="after", code="invalid_value") from None


def listed(entries: Sequence[dict[str, Any]], *, has_more: bool) -> dict[str, Any]:
    """A list's body. Ids of an empty one are empty: the contract has no null there."""
    return {
        "object": "list",
        "data": list(entries),
        "first_id": entries[0]["id"] if entries else "",
        "last_id": entries[-1]["id"] if entries else "",
        "has_more": has_more,
    }


def labels(request: Request) -> dict[str, str]:
    """The filter metadata[KEY]=VALUE of a query."""
    found = ((re.fullmatch(r"metadata\[(.*)\]", name), value) for name, value in _query(request))
    return {match[1]: value for match, value in found if match}


def unlabelled(request: Request) -> bool:
    """Whether the query asks for what has no metadata: metadata=null."""
    asked = request.query_params.get("metadata")
    if asked not in (None, "", "null"):
        raise Refusal(
            "Filter by metadata[KEY]=VALUE, or by metadata=null for what has none.",
            param="metadata",
            code="invalid_value",
        )
    return asked is not None


def _query(request: Request) -> list[tuple[str, str]]:
    return request.query_params.multi_items()
