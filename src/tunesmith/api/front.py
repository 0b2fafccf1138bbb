"""What stands before every route, and the routes that tell how the server fares."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from sqlalchemy.exc import DBAPIError
from starlette.requests import ClientDisconnect

from tunesmith.api.gate import Gate
from tunesmith.api.logs import Log
from tunesmith.api.metrics import Metrics
from tunesmith.api.watch import Watch
from tunesmith.api.who import who
from tunesmith.serve.router import Router
from tunesmith.serve.wire import error_body
from tunesmith.settings import Settings
from tunesmith.store import Store

FAILED = "The server had an error while processing your request. Its log has the traceback."


def put_before(
    app: FastAPI,
    store: Store,
    settings: Settings,
    router: Router,
    *,
    loopback: bool,
    log: Log | None,
) -> None:
    """Put the gate and the watch before the app, and give it /health, /ready and /metrics."""
    metrics = Metrics(store.jobs.counts)
    states = StateRoutes(store, router, metrics)
    app.add_api_route("/health", states.health, methods=["GET"])
    app.add_api_route("/ready", states.ready, methods=["GET"], response_model=None)
    app.add_api_route("/metrics", states.metrics, methods=["GET"], response_model=None)
    app.add_exception_handler(Exception, _failed)
    app.add_exception_handler(ClientDisconnect, _gone)
    # The one that is added last sees a request first.
    app.add_middleware(Gate, keys=store.keys, settings=settings, loopback=loopback)
    app.add_middleware(Watch, keys=store.keys, metrics=metrics, log=log)


class StateRoutes:
    """/health, /ready and /metrics."""

    def __init__(self, store: Store, router: Router, metrics: Metrics) -> None:
        self._store, self._router, self._metrics = store, router, metrics

    async def health(self) -> dict[str, Any]:
        """GET /health: the process answers."""
        return {"status": "ok", "engines": list(self._router.running)}

    async def ready(self) -> Response:
        """GET /ready: the database answers, and an engine is up or can be started; else 503."""
        try:
            await asyncio.to_thread(self._store.keys.projects)
        except DBAPIError:
            return _not_ready("The database does not answer.")
        if not self._router.ready:
            return _not_ready("The engine does not start; its log says why.")
        return JSONResponse({"status": "ok"})

    async def metrics(self, request: Request) -> Response:
        """GET /metrics, for Prometheus; where keys are asked for, it takes an admin's."""
        who(request).may("admin")
        text = await asyncio.to_thread(self._metrics.read)
        return Response(text, media_type=CONTENT_TYPE_LATEST)


def _not_ready(why: str) -> Response:
    return JSONResponse(error_body(why, kind="server_error", code="not_ready"), 503)


async def _failed(request: Request, _: Exception) -> Response:
    headers = {"x-request-id": request.scope["state"]["request_id"]}
    return JSONResponse(error_body(FAILED, kind="server_error"), 500, headers)


async def _gone(_: Request, __: Exception) -> Response:
    """The client hung up while it sent; nobody reads this."""
    return Response(status_code=499)
