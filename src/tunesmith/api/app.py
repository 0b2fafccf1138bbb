"""The OpenAI-compatible server: routes without torch, in front of engine processes."""

from __future__ import annotations

import secrets
import socket
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tunesmith.api.chat import ChatRoutes
from tunesmith.api.models import ModelRoutes
from tunesmith.errors import UsageError
from tunesmith.serve import engines
from tunesmith.serve.router import Deployment, Router
from tunesmith.serve.wire import answer_errors_as_openai, error_body
from tunesmith.store import Store
from tunesmith.worker.child import beside

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
"""Names of this machine to itself."""
GRACE_SECONDS = 5
"""How long requests in hand may go on once the server is told to end."""


def create_app(
    router: Router, store: Store, default: Deployment, *, loopback: bool = True
) -> FastAPI:
    """The server's app. The end of its lifespan stops the router's engines.

    Args:
        default: the base that is listed first and always there.
        loopback: refuse requests that name another host or come from another site's page, as a
            page in the user's browser could send them.
    """
    http = httpx.AsyncClient(
        timeout=None, trust_env=False, limits=httpx.Limits(max_connections=None)
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        yield
        await http.aclose()
        await router.close()

    async def health() -> dict[str, Any]:
        return {"status": "ok", "engines": list(router.running)}

    app = FastAPI(title="tunesmith", lifespan=lifespan, docs_url=None, redoc_url=None)
    answer_errors_as_openai(app)
    models = ModelRoutes(default, store)
    chat = ChatRoutes(models, router, http)
    app.add_api_route("/health", health, methods=["GET"])
    app.add_api_route("/v1/models", models.list_models, methods=["GET"])
    app.add_api_route("/v1/models/{name:path}", models.show_model, methods=["GET"])
    app.add_api_route("/v1/chat/completions", chat.chat, methods=["POST"], response_model=None)
    app.add_api_route("/v1/completions", chat.completions, methods=["POST"], response_model=None)
    app.add_api_route("/v1/logprobs", chat.logprobs, methods=["POST"], response_model=None)
    app.add_middleware(Gate, loopback=loopback)
    return app


async def serve(
    default: Deployment,
    store: Store,
    *,
    logs: Path,
    host: str = "127.0.0.1",
    port: int = 8000,
    max_rows: int = 32,
    announce: Callable[[str], None],
    command: Sequence[str] = engines.COMMAND,
    worker: bool = False,
    preload: bool = True,
) -> None:
    """Serve until a signal.

    Args:
        logs: folder for the engines' logs.
        port: 0 takes a free one.
        announce: called with the server's URL once it answers.
        worker: whether jobs are trained, by a worker beside the server.
        preload: have the engine of the default base up before the first request.

    Raises:
        UsageError: the port is taken.
        EngineError: the engine does not start.
    """
    with _listen(host, port) as listener:
        async with Router(logs=logs, max_rows=max_rows, command=command) as router:
            app = create_app(router, store, default, loopback=host in LOOPBACK)
            config = uvicorn.Config(
                app,
                log_level="warning",
                access_log=False,
                timeout_graceful_shutdown=GRACE_SECONDS,
            )
            if preload:
                await router.engine(default)
            shown = f"[{host}]" if ":" in host else host
            announce(f"http://{shown}:{listener.getsockname()[1]}")
            async with beside(logs / "worker.log") if worker else nullcontext():
                await uvicorn.Server(config).serve(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise UsageError(
            f"cannot listen on {host}:{port}: {error.strerror}",
            expected="a free port of this machine",
            remedy="Choose another with --port, or 0 for any.",
        ) from None


class Gate:
    """Lets only this machine's own requests in when the server listens on loopback.

    A foreign Host is what DNS rebinding sends (421), a foreign Origin what another site's page
    sends (403). Every answer gets the x-request-id that the openai package reports.
    """

    def __init__(self, app: ASGIApp, *, loopback: bool) -> None:
        self._app, self._loopback = app, loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = f"req_{secrets.token_hex(12)}"

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        refused = _foreign(Headers(scope=scope)) if self._loopback else None
        await (refused or self._app)(scope, receive, send_named)


def _foreign(headers: Headers) -> JSONResponse | None:
    """The refusal of a request that is not this machine's own."""
    host, origin = headers.get("host", ""), headers.get("origin")
    if _hostname(f"//{host}") not in LOOPBACK:
        said = f"This server answers on loopback only, not as {host!r}."
        return JSONResponse(error_body(said, kind="invalid_request_error"), 421)
    if origin is not None and _hostname(origin) not in LOOPBACK:
        said = f"Requests from pages of {origin} are refused."
        return JSONResponse(error_body(said, kind="invalid_request_error"), 403)
    return None


def _hostname(address: str) -> str | None:
    try:
        return urlsplit(address).hostname
    except ValueError:
        return None
