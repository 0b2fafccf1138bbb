"""Bodies of requests, read as strictly as JSON is defined (RFC 8259), and not too deep."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn, cast

from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute

DEEPEST = 100
"""Most arrays and objects within each other: what comes after reads them by recursion."""


class StrictRoute(APIRoute):
    """A route whose body is read by `read_json`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See APIRoute."""
        handle = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handle(_StrictRequest(request.scope, request.receive))

        return strict


class _StrictRequest(Request):
    async def json(self) -> Any:
        return read_json(await self.body())


def read_json(body: bytes) -> Any:
    """The value of a body.

    Raises:
        HTTPException: 400, for what is not JSON, not text, or too deep.
    """
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_no_number)
    except UnicodeDecodeError as error:
        raise _refused(f"The body is not UTF-8: byte {error.start} cannot be read") from None
    except json.JSONDecodeError as error:
        raise _refused(f"The body of the request is not valid JSON: {error}") from None
    except ValueError as error:
        raise _refused(f"The body of the request has a number out of range: {error}") from None
    except RecursionError:
        raise _too_deep() from None
    _check(value)
    return value


def _check(value: object) -> None:
    """Refuse what no later step could write down again; PostgreSQL keeps no NUL."""
    level: list[object] = [value]
    for _ in range(DEEPEST + 1):
        deeper: list[object] = []
        for item in level:
            if isinstance(item, dict):
                held = cast("dict[str, object]", item)
                deeper += held.values()
                deeper += held
            elif isinstance(item, list):
                deeper += cast("list[object]", item)
            elif isinstance(item, str) and ("\0" in item or not item.isascii()):
                _check_text(item)
            elif isinstance(item, float) and not math.isfinite(item):
                raise _refused("The body of the request has a number out of range")
        if not deeper:
            return
        level = deeper
    raise _too_deep()


def _check_text(text: str) -> None:
    if "\0" in text:
        raise _refused("The body of the request has the character NUL in a string")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _refused(
            f"The body of the request has half a character, {text[error.start]!a}, in a string"
        ) from None


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _too_deep() -> HTTPException:
    return _refused(f"The body of the request is nested more than {DEEPEST} deep")


def _refused(found: str) -> HTTPException:
    return HTTPException(400, found)
