"""The API server in front of real engine processes without a model."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI

from tunesmith.api.app import serve
from tunesmith.serve.router import Deployment
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
