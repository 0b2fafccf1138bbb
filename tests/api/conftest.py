"""The API server in front of real engine processes without a model."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from openai import AsyncOpenAI

from tunesmith.api.app import serve
from tunesmith.api.front import put_before
from tunesmith.api.listen import listen, server
from tunesmith.api.logs import Log
from tunesmith.api.who import who
from tunesmith.serve.router import Deployment, Router
from tunesmith.serve.wire import Refusal, answer_errors_as_openai
from tunesmith.settings import Settings
from tunesmith.store import Store

FAKE = Path(__file__).parents[1] / "serve" / "fake_engine.py"
TUNED = "ft:base:me:run:1"

Test = Callable[[AsyncOpenAI], Awaitable[Any]]


@pytest.fixture
def api(tmp_path: Path) -> Callable[[Test], None]:
    """Runs a test with the openai package against `serve`, with one tuned model registered."""

    def run(test: Test) -> None:
        async def go() -> None:
            default = Deployment("base", "base", tmp_path)
            url: asyncio.Future[str] = asyncio.get_running_loop().create_future()
            with Store.at(tmp_path / "home") as store:
                store.register_model(
                    TUNED,
                    base="base",
                    base_hash="00",
                    base_folder=tmp_path,
                    adapter_folder=tmp_path,
                )
                server = asyncio.create_task(
                    serve(
                        default,
                        store,
                        logs=tmp_path / "logs",
                        port=0,
                        announce=url.set_result,
                        command=(sys.executable, str(FAKE)),
                    )
                )
                await asyncio.wait({server, url}, return_when=asyncio.FIRST_COMPLETED)
                client = AsyncOpenAI(
                    base_url=f"{url.result()}/v1", api_key="any", max_retries=0, timeout=20
                )
                try:
                    await test(client)
                finally:
                    await client.close()
                    server.cancel()
                    await asyncio.gather(server, return_exceptions=True)

        asyncio.run(go())

    return run


@dataclass
class Front:
    """A server of a few routes behind the gate, on a real socket."""

    url: str
    store: Store
    log: Path
    arrived: asyncio.Event
    """A request has come to /v1/slow."""
    go_on: asyncio.Event
    """Lets it be answered."""

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @asynccontextmanager
    async def connected(
        self, sent: bytes = b""
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """A connection by hand, on which something has been sent."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(sent)
            yield reader, writer
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]


FrontTest = Callable[[Front, httpx.AsyncClient], Awaitable[Any]]


@pytest.fixture
def front(tmp_path: Path) -> Callable[..., None]:
    """Runs a test against a `Front`: front(test, database=URL, loopback=False, slots=2)."""

    def run(test: FrontTest, *, database: str = "", loopback: bool = True, **settings: Any) -> None:
        async def go() -> None:
            with (
                Store(database or f"sqlite:///{tmp_path / 'front.db'}") as store,
                listen("127.0.0.1", 0) as listener,
                Log(tmp_path / "logs" / "server.jsonl") as log,
            ):
                url = f"http://127.0.0.1:{listener.getsockname()[1]}"
                path = tmp_path / "logs" / "server.jsonl"
                made = Front(url, store, path, asyncio.Event(), asyncio.Event())
                app = front_app(made)
                wanted = Settings(**settings)
                router = Router(logs=tmp_path)
                put_before(app, store, wanted, router, loopback=loopback, log=log)
                running = server(app, patience=wanted.patience_seconds)
                task = asyncio.create_task(running.serve(sockets=[listener]))
                try:
                    async with httpx.AsyncClient(base_url=url, timeout=20) as http:
                        await test(made, http)
                finally:
                    running.should_exit = True
                    await task

        asyncio.run(go())

    return run


def front_app(made: Front) -> FastAPI:
    app = FastAPI()
    answer_errors_as_openai(app)

    @app.get("/v1/who")
    async def show(request: Request) -> dict[str, Any]:
        return asdict(who(request))

    @app.post("/v1/fine_tuning/jobs")
    async def create(body: dict[str, Any], request: Request) -> dict[str, Any]:
        return {"id": "ftjob-1", "keys": len(body)}

    @app.post("/v1/files")
    async def upload(request: Request) -> dict[str, Any]:
        size = 0
        async for chunk in request.stream():
            size += len(chunk)
            if size > 2**20:
                raise Refusal("Too large.", status=413)
        return {"id": "file-1", "bytes": size}

    @app.delete("/v1/files/{file_id}")
    async def delete(file_id: str) -> dict[str, Any]:
        return {"id": file_id, "deleted": True}

    @app.post("/v1/files/{file_id}/fail")
    async def fail(file_id: str) -> None:
        raise ZeroDivisionError(file_id)

    add_slow_routes(app, made)
    return app


def add_slow_routes(app: FastAPI, made: Front) -> None:
    @app.post("/v1/slow")
    async def slow() -> None:
        made.arrived.set()
        await made.go_on.wait()

    @app.post("/v1/chat/completions")
    async def chat(body: dict[str, Any], request: Request) -> dict[str, Any]:
        if body.get("store"):
            request.state.subject = "chatcmpl-1"
        return {"id": "chatcmpl-1"}

    @app.get("/v1/endless")
    async def endless() -> StreamingResponse:
        async def chunks() -> AsyncIterator[bytes]:
            while True:
                yield b"x" * 65536
                await asyncio.sleep(0)

        return StreamingResponse(chunks())
