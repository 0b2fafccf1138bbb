from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI

from tunesmith.api.app import create_app, serve
from tunesmith.errors import UsageError
from tunesmith.serve.router import Deployment, Router
from tunesmith.store import Store

FAKE = Path(__file__).parents[1] / "serve" / "fake_engine.py"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "localhost:1234"}, 200),
        ({"host": "[::1]"}, 200),
        ({"origin": "http://localhost:3000"}, 200),
        ({"host": "rebound.example"}, 421),
        ({"host": "127.0.0.1.example"}, 421),
        ({"host": ""}, 421),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
    ],
)
def test_only_this_machine_is_answered_on_loopback(
    tmp_path: Path, headers: dict[str, str], status: int
) -> None:
    answer = ask_for_models(tmp_path, headers, loopback=True)
    assert answer.status_code == status
    assert answer.headers["x-request-id"].startswith("req_")
    if status != 200:
        assert answer.json()["error"]["type"] == "invalid_request_error"


def test_a_server_that_was_put_on_the_network_asks_for_a_key_whatever_it_is_called(
    tmp_path: Path,
) -> None:
    with Store.at(tmp_path) as store:
        secret = store.keys.make("ci", role="read")[1]
    headers = {"host": "box.example", "authorization": f"Bearer {secret}"}
    assert ask_for_models(tmp_path, headers, loopback=False).status_code == 200
    del headers["authorization"]
    assert ask_for_models(tmp_path, headers, loopback=False).status_code == 401


@pytest.mark.parametrize("made", ["no key", "a revoked key"])
def test_a_server_is_not_put_on_the_network_without_a_key(tmp_path: Path, made: str) -> None:
    async def go(store: Store) -> None:
        default = Deployment("base", "base", tmp_path)
        await serve(default, store, logs=tmp_path, host="0.0.0.0", port=0, announce=print)

    with Store.at(tmp_path) as store:
        if made == "a revoked key":
            store.keys.revoke(store.keys.make("ci")[0].id)
        with pytest.raises(UsageError, match="tunesmith keys make"):
            asyncio.run(go(store))


def ask_for_models(folder: Path, headers: dict[str, str], *, loopback: bool) -> httpx.Response:
    async def go(store: Store) -> httpx.Response:
        router, default = Router(logs=folder), Deployment("base", "base", folder)
        app = create_app(router, store, default, logs=folder, loopback=loopback)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(
                transport=httpx.ASGITransport(app), base_url="http://127.0.0.1"
            ) as http,
        ):
            return await http.get("/v1/models", headers=headers)

    with Store.at(folder) as store:
        return asyncio.run(go(store))


def test_health_names_the_engines_that_are_up(api: Any) -> None:
    async def test(client: AsyncOpenAI) -> None:
        async with httpx.AsyncClient() as http:
            answer = await http.get(str(client.base_url).replace("/v1/", "/health"))
        assert answer.json() == {"status": "ok", "engines": ["base"]}

    api(test)


def test_a_port_that_is_taken_is_an_error_that_says_what_to_type(tmp_path: Path) -> None:
    async def go(port: int) -> None:
        with Store.at(tmp_path) as store:
            default = Deployment("base", "base", tmp_path)
            await serve(default, store, logs=tmp_path, port=port, announce=lambda _: None)

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match="--port"):
            asyncio.run(go(port))


def test_the_server_imports_no_torch() -> None:
    code = "import sys, tunesmith.api.app; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_ctrl_c_ends_the_server_and_its_engine(tmp_path: Path) -> None:
    script = textwrap.dedent(f"""
        import asyncio, sys
        from pathlib import Path
        from tunesmith.api.app import create_app, serve
        from tunesmith.serve.router import Deployment
        from tunesmith.store import Store
        home = Path({str(tmp_path)!r})
        def say(url):
            print(url, flush=True)
        with Store.at(home) as store:
            asyncio.run(serve(Deployment("base", "base", home), store, logs=home, port=0,
                              announce=say, command=(sys.executable, {str(FAKE)!r})))
    """)
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    url = process.stdout.readline().strip()
    assert httpx.get(f"{url}/health").status_code == 200
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(signal.SIGINT)
    process.wait(20)
    process.stdout.close()
    process.stderr.close()
    assert children
    for child in children:
        with pytest.raises(ProcessLookupError):
            os.kill(int(child), 0)
