"""The OpenAI-compatible server: routes without torch, in front of engine processes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path

import httpx
from fastapi import FastAPI

from tunesmith.api.answers import AnswerRoutes
from tunesmith.api.chat import ChatRoutes
from tunesmith.api.checkpoints import CheckpointRoutes
from tunesmith.api.embeddings import EmbeddingRoutes
from tunesmith.api.files import FileRoutes
from tunesmith.api.front import put_before
from tunesmith.api.gate import LOOPBACK
from tunesmith.api.graders import GraderRoutes
from tunesmith.api.jobs import JobRoutes
from tunesmith.api.listen import listen, server
from tunesmith.api.logs import Log
from tunesmith.api.models import ModelRoutes
from tunesmith.api.uploads import UploadRoutes
from tunesmith.errors import UsageError
from tunesmith.models.catalog import ENCODER
from tunesmith.models.fetch import home
from tunesmith.serve.engines import EngineKind
from tunesmith.serve.router import Deployment, Router
from tunesmith.serve.wire import answer_errors_as_openai
from tunesmith.settings import Settings
from tunesmith.store import Store
from tunesmith.store.blobs import Blobs
from tunesmith.worker.child import beside

EMBEDDING_NAMES = ("text-embedding-3-small", "text-embedding-3-large", "text-embedding-ada-002")
"""OpenAI's encoders, as people have them in their code; the catalogue's stands for each."""


def create_app(
    router: Router,
    store: Store,
    default: Deployment,
    *,
    logs: Path,
    settings: Settings | None = None,
    loopback: bool = True,
    log: Log | None = None,
) -> FastAPI:
    """The server's app. The end of its lifespan stops the engines.

    Args:
        default: the base that is listed first and always there.
        logs: folder for the encoders' logs.
        settings: those of TUNESMITH_HOME where none are given.
        loopback: whether nobody but this machine can reach the server: no key is asked for, but
            requests that name another host or come from another site's page are refused.
        log: gets a line for every request.
    """
    settings = settings or Settings.read(home())
    http = httpx.AsyncClient(
        timeout=None, trust_env=False, limits=httpx.Limits(max_connections=None)
    )
    blobs = Blobs(home() / "files")
    models, answers = ModelRoutes(default, store, settings, home()), AnswerRoutes(store, settings)
    chat = ChatRoutes(models, router, http, keep=answers.keep)
    encoders = EmbeddingRoutes(http, logs=logs, names=dict.fromkeys(EMBEDDING_NAMES, ENCODER))
    graders = GraderRoutes(encoders.embed, chat.of, python_graders=settings.python_graders)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        yield
        await http.aclose()
        await encoders.close()
        await router.close()

    app = FastAPI(title="tunesmith", lifespan=lifespan, docs_url=None, redoc_url=None)
    answer_errors_as_openai(app)
    for room in (
        FileRoutes(store, blobs, settings, home()),
        UploadRoutes(store, blobs, settings),
        JobRoutes(store, models, settings),
        CheckpointRoutes(store, models),
        models,
        answers,
        chat,
        encoders,
        graders,
    ):
        app.include_router(room.routes())
    put_before(app, store, settings, router, loopback=loopback, log=log)
    return app


async def serve(
    default: Deployment,
    store: Store,
    *,
    logs: Path,
    host: str = "127.0.0.1",
    port: int = 8000,
    max_rows: int = 32,
    engine: EngineKind = "local",
    announce: Callable[[str], None],
    command: Sequence[str] | None = None,
    worker: bool = False,
    preload: bool = True,
) -> None:
    """Serve until a signal.

    Args:
        logs: folder for the log of requests, server.jsonl, and for the engines' logs.
        port: 0 takes a free one.
        engine: what computes.
        announce: called with the server's URL once it answers.
        worker: whether jobs are trained, by a worker beside the server.
        preload: have the engine of the default base up before the first request.

    Raises:
        UsageError: the port is taken; there is no key and `host` is beyond loopback.
        EngineError: the engine does not start.
    """
    loopback = host in LOOPBACK
    if not (loopback or any(key.revoked_at is None for key in store.keys.list())):
        raise UsageError(
            f"{host} can be reached from other machines, and there is no API key",
            expected="a key, which every request will have to carry",
            remedy="Make one: tunesmith keys make NAME --role write",
        )
    with listen(host, port) as listener, Log(logs / "server.jsonl") as log:
        settings = Settings.read(home())
        async with Router(
            logs=logs,
            kind=engine,
            max_rows=max_rows,
            max_waiting=settings.max_waiting,
            command=command,
        ) as router:
            app = create_app(
                router, store, default, logs=logs, settings=settings, loopback=loopback, log=log
            )
            if preload:
                await router.engine(default)
            shown = f"[{host}]" if ":" in host else host
            announce(f"http://{shown}:{listener.getsockname()[1]}")
            async with beside(logs / "worker.log") if worker else nullcontext():
                await server(app, patience=settings.patience_seconds).serve(sockets=[listener])
