"""What an engine process does beside answering: read its spec, listen, end with its parent."""

from __future__ import annotations

import json
import os
import secrets
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Literal, Protocol

import uvicorn
from fastapi import Depends, FastAPI, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.types import Lifespan

from tunesmith.errors import TunesmithError
from tunesmith.models.lifetime import die_with_parent
from tunesmith.serve.wire import Refusal, answer_errors_as_openai

KEEP_SECONDS = 60
GRACE_SECONDS = 2
"""How long requests in hand may go on once the process is told to end."""


class Spec(BaseModel):
    """What the starting process asks for."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    model: Path
    """Folder of the base."""
    name: str
    """What the base is called in requests."""
    key: str
    """Bearer key of every request."""
    parent: int
    """Id of the process that this one ends with."""
    dtype: Literal["auto", "bfloat16", "float32", "float64", "nf4"] = "auto"
    adapters: dict[str, Path] = {}
    max_rows: int = 32
    """Most sequences decoded together."""
    max_waiting: Annotated[int, Field(ge=0)]
    """Most sequences that wait behind these; a request beyond is refused with 429."""


class MakeApp(Protocol):
    """Makes the app of a process around what it has loaded."""

    def __call__(self, *, on_crash: Callable[[], None]) -> FastAPI:
        """The app; `on_crash` is called when what computes has raised."""
        ...


def private_app(key: str, lifespan: Lifespan[FastAPI]) -> FastAPI:
    """An app without routes yet: requests have to show the bearer key, errors are OpenAI's."""

    def authorize(request: Request) -> None:
        shown = request.headers.get("authorization", "")
        if not secrets.compare_digest(shown.encode(), f"Bearer {key}".encode()):
            raise Refusal("Incorrect API key provided.", status=401, code="invalid_api_key")

    app = FastAPI(lifespan=lifespan, dependencies=[Depends(authorize)], openapi_url=None)
    answer_errors_as_openai(app)
    return app


def run(spec_file: str, load: Callable[[Spec], AbstractContextManager[MakeApp]]) -> int:
    """Answer requests until a signal or a crash. Returns the exit code.

    Args:
        load: the model of a spec, held for the length of the block.
    """
    # The parent reads one line of standard output, and a pipe that nobody reads fills up and
    # blocks: what libraries print goes to standard error.
    announce = os.dup(1)
    os.dup2(2, 1)
    spec = Spec.model_validate_json(Path(spec_file).read_bytes())
    die_with_parent(spec.parent)
    try:
        with load(spec) as make:
            return _serve(make, announce)
    except TunesmithError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code


def _serve(make: MakeApp, announce: int) -> int:
    crashed = threading.Event()

    def on_crash() -> None:
        crashed.set()
        server.should_exit = True

    config = uvicorn.Config(
        make(on_crash=on_crash),
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
        # Longer than clients keep one: else both may let go of it at once, and a request is lost.
        timeout_keep_alive=KEEP_SECONDS,
    )
    server = uvicorn.Server(config)
    listener = socket.create_server(("127.0.0.1", 0))
    ready = {"type": "ready", "url": f"http://127.0.0.1:{listener.getsockname()[1]}"}
    with os.fdopen(announce, "w", encoding="utf-8") as out:
        out.write(json.dumps(ready) + "\n")
    server.run(sockets=[listener])
    return 1 if crashed.is_set() else 0
