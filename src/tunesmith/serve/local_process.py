"""What an engine process does beside answering: read its spec, listen, end with its parent."""

from __future__ import annotations

import json
import os
import socket
import threading
from pathlib import Path
from typing import Annotated, Literal, TextIO

import uvicorn
from pydantic import BaseModel, ConfigDict, Field

from tunesmith.errors import EngineError
from tunesmith.serve.local_http import MAX_WAITING, Model, create_engine_app
from tunesmith.serve.local_loop import Sampling

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
    host: str = "127.0.0.1"
    port: int = 0
    max_rows: int = 32
    """Most sequences decoded together."""
    max_waiting: Annotated[int, Field(ge=0)] = MAX_WAITING
    """Most sequences that wait behind these; a request beyond is refused with 429."""


def claim_stdout() -> TextIO:
    """The real standard output; what libraries print goes to standard error from now on.

    The parent reads one line, and a pipe that nobody reads fills up and blocks.
    """
    announce = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return announce


def run_engine(spec: Spec, model: Model, sampler: Sampling, announce: TextIO) -> int:
    """Answer requests until a signal or a crash of the sampler. Returns the exit code."""
    crashed = threading.Event()

    def on_crash() -> None:
        crashed.set()
        server.should_exit = True

    app = create_engine_app(
        model,
        sampler,
        name=spec.name,
        key=spec.key,
        max_waiting=spec.max_waiting,
        on_crash=on_crash,
    )
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
        # Longer than clients keep one: else both may let go of it at once, and a request is lost.
        timeout_keep_alive=KEEP_SECONDS,
    )
    server = uvicorn.Server(config)
    try:
        listener = socket.create_server((spec.host, spec.port))
    except OSError as error:
        raise EngineError(
            f"the engine cannot listen on {spec.host}:{spec.port}: {error.strerror}",
            expected="a free port",
        ) from None
    port = listener.getsockname()[1]
    announce.write(json.dumps({"type": "ready", "url": f"http://{spec.host}:{port}"}) + "\n")
    announce.close()
    server.run(sockets=[listener])
    return 1 if crashed.is_set() else 0
