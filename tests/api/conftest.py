"""The API server in front of real engine processes without a model."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import jsonschema_rs
import pytest
import uvicorn
import yaml
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from openai import AsyncOpenAI, OpenAI

from tunesmith.api.app import create_app
from tunesmith.api.front import put_before
from tunesmith.api.listen import listen, server
from tunesmith.api.logs import Log
from tunesmith.api.who import who
from tunesmith.serve.engines import Engine
from tunesmith.serve.router import Deployment, Router
from tunesmith.serve.wire import Refusal, answer_errors_as_openai
from tunesmith.settings import Settings
from tunesmith.store import Store
from tunesmith.store.keys import Role

SHARED = Path(os.environ.get("TUNESMITH_SHARED", Path(__file__).parents[3] / "shared"))

FAKE = Path(__file__).parents[1] / "serve" / "fake_engine.py"
TUNED = "ft:base:me:run:1"

Test = Callable[[AsyncOpenAI], Awaitable[Any]]


@dataclass(frozen=True)
class Served:
    """The app behind uvicorn on loopback, keys decide whose project it is."""

    url: str
    store: Store
    home: Path
    router: Router
    clients: list[OpenAI]

    @property
    def engine(self) -> Engine:
        """The engine that is up."""
        [found] = self.router._engines.values()
        return found

    def sdk(self, secret: str = "any") -> OpenAI:
        for client in self.clients:
            if client.api_key == secret:
                return client
        client = OpenAI(base_url=f"{self.url}/v1", api_key=secret, max_retries=0, timeout=20)
        self.clients.append(client)
        return client

    def stranger(self, role: Role = "admin") -> OpenAI:
        """A client of another project."""
        return self.sdk(self.store.keys.make("theirs", project="theirs", role=role)[1])

    def alive(self) -> None:
        assert httpx.get(f"{self.url}/health").status_code == 200


@contextmanager
def serve(
    home: Path, database: str = "", command: tuple[str, ...] | None = None, **settings: object
) -> Generator[Served]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNESMITH_HOME", str(home))
        patch.setenv("TUNESMITH_ORGANIZATION", "acme")
        for name, value in settings.items():
            patch.setenv(f"TUNESMITH_{name}", str(value))
        database = database or f"sqlite:///{home / 'tunesmith.db'}"
        with Store(database) as store, socket.create_server(("127.0.0.1", 0)) as listener:
            (home / "base").mkdir(exist_ok=True)
            router = Router(logs=home, command=command)
            base = Deployment("base", "base", home / "base")
            app = create_app(router, store, base, logs=home)
            server = uvicorn.Server(uvicorn.Config(app, log_level="critical"))
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
            thread.start()
            while not server.started:
                time.sleep(0.01)
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            served = Served(url, store, home, router, [])
            yield served
            for client in served.clients:
                client.close()
            server.should_exit = True
            thread.join()


@pytest.fixture
def serving(tmp_path: Path) -> Callable[..., AbstractContextManager[Served]]:
    """Serves while the block lasts: `with serving(database, MAX_FILE_BYTES=5) as served`."""
    return partial(serve, tmp_path)


@pytest.fixture(scope="module")
def chatting(tmp_path_factory: pytest.TempPathFactory) -> Generator[Served]:
    """The app with an engine without a model, and one tuned model registered."""
    home = tmp_path_factory.mktemp("chatting")
    with serve(home, command=(sys.executable, str(FAKE))) as served:
        served.store.register_model(
            TUNED, base="base", base_hash="00", base_folder=home / "base", adapter_folder=home
        )
        hello: Any = [{"role": "user", "content": "hello"}]
        served.sdk().chat.completions.create(model="base", messages=hello)
        yield served


@pytest.fixture
def api(chatting: Served) -> Callable[[Test], None]:
    """Runs a test with the openai package against `chatting`."""

    def run(test: Test) -> None:
        async def go() -> None:
            url = f"{chatting.url}/v1"
            async with AsyncOpenAI(base_url=url, api_key="any", max_retries=0, timeout=20) as sdk:
                await test(sdk)

        asyncio.run(go())

    return run


@pytest.fixture
def served(serving: Any, database: str) -> Generator[Served]:
    """The app on an empty database, once of each kind."""
    with serving(database) as served:
        yield served


@pytest.fixture(scope="session")
def conforms() -> Callable[[str, Any], None]:
    """Holds a body against a schema of the contract."""
    path = SHARED / "contracts" / "openai-subset.yaml"
    if not path.exists():
        pytest.skip("no contract beside the repository (set TUNESMITH_SHARED)")
    contract = yaml.load(path.read_text(), Loader=yaml.CSafeLoader)
    made: dict[str, jsonschema_rs.Validator] = {}

    def check(name: str, body: Any) -> None:
        if name not in made:
            schema = {"$ref": f"#/components/schemas/{name}", "components": contract["components"]}
            made[name] = jsonschema_rs.Draft202012Validator(schema)
        made[name].validate(body)

    return check


ROWS = b"".join(
    b'{"messages": [{"role": "user", "content": "%d"}, {"role": "assistant", "content": "x"}]}\n'
    % n
    for n in range(10)
)


@pytest.fixture
def rows() -> bytes:
    """A training file of ten rows."""
    return ROWS


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
