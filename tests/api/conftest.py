"""The API server in front of real engine processes without a model."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import jsonschema_rs
import pytest
import uvicorn
import yaml
from openai import AsyncOpenAI, OpenAI
from starlette.datastructures import Headers
from starlette.types import ASGIApp

from tunesmith.api.app import create_app, serve
from tunesmith.api.who import Who
from tunesmith.serve.router import Deployment, Router
from tunesmith.store import Store
from tunesmith.store.keys import Role

SHARED = Path(os.environ.get("TUNESMITH_SHARED", Path(__file__).parents[3] / "shared"))

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


@dataclass(frozen=True)
class Served:
    """The app behind uvicorn on loopback, without engines: keys decide whose project it is."""

    url: str
    store: Store
    home: Path
    clients: list[OpenAI]

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


@pytest.fixture
def serving(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., AbstractContextManager[Served]]:
    """Serves while the block lasts: `with serving(database, MAX_FILE_BYTES=5) as served`."""

    @contextmanager
    def serve(database: str = "", **settings: object) -> Generator[Served]:
        monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path))
        monkeypatch.setenv("TUNESMITH_ORGANIZATION", "acme")
        for name, value in settings.items():
            monkeypatch.setenv(f"TUNESMITH_{name}", str(value))
        database = database or f"sqlite:///{tmp_path / 'tunesmith.db'}"
        with Store(database) as store, socket.create_server(("127.0.0.1", 0)) as listener:
            (tmp_path / "base").mkdir(exist_ok=True)
            router = Router(logs=tmp_path)
            app = create_app(router, store, Deployment("base", "base", tmp_path / "base"))
            server = uvicorn.Server(uvicorn.Config(_known(app, store), log_level="warning"))
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
            thread.start()
            while not server.started:
                time.sleep(0.01)
            clients: list[OpenAI] = []
            yield Served(f"http://127.0.0.1:{listener.getsockname()[1]}", store, tmp_path, clients)
            for client in clients:
                client.close()
            server.should_exit = True
            thread.join()

    return serve


@pytest.fixture
def served(serving: Any, database: str) -> Generator[Served]:
    """The app on an empty database, once of each kind."""
    with serving(database) as served:
        yield served


def _known(app: ASGIApp, store: Store) -> ASGIApp:
    """Who sent a request is known by the key."""

    async def asked(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            secret = Headers(scope=scope).get("authorization", "").removeprefix("Bearer ")
            key = store.keys.find(secret)
            if key is not None:
                scope.setdefault("state", {})["who"] = Who(key.project, key.id, key.role)
        await app(scope, receive, send)

    return asked


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
