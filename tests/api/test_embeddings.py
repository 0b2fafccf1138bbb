from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import uvicorn
from fastapi import FastAPI
from openai import AsyncOpenAI, OpenAI

from tunesmith.api.embeddings import EmbeddingRoutes
from tunesmith.errors import ModelError
from tunesmith.models.catalog import CARD, ENCODER
from tunesmith.models.encoder import Encoder
from tunesmith.models.fetch import home
from tunesmith.serve.wire import Refusal, answer_errors_as_openai

NAME = "text-embedding-3-small"
TEXTS = ["My parcel is late", "z", "where is it now?"]
Test = Callable[[EmbeddingRoutes, AsyncOpenAI], Awaitable[Any]]


@pytest.fixture
def api(tiny_encoder: Path, tmp_path: Path) -> Callable[[Test], None]:
    """Runs a test with the routes and the openai package before a real server that has them."""

    def run(test: Test) -> None:
        asyncio.run(_run(test, {NAME: str(tiny_encoder)}, tmp_path))

    return run


async def _run(test: Test, names: dict[str, str], logs: Path) -> None:
    http = httpx.AsyncClient(timeout=None, trust_env=False)
    routes = EmbeddingRoutes(http, logs=logs, names=names)
    app = FastAPI()
    answer_errors_as_openai(app)
    app.add_api_route("/v1/embeddings", routes.embeddings, methods=["POST"], response_model=None)
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical"))
    task = asyncio.create_task(server.serve(sockets=[listener]))
    client = AsyncOpenAI(base_url=url, api_key="any", max_retries=0)
    try:
        await test(routes, client)
    finally:
        await client.close()
        server.should_exit = True
        await task
        await routes.close()
        await http.aclose()


def encoder_pids() -> list[int]:
    """The encoder processes that this test process has started."""
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    return [
        int(child)
        for child in children
        if b"tunesmith.serve.encoder" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]


def test_one_process_answers_the_sdk_and_callers_here_and_is_started_anew_when_it_died(
    api: Callable[[Test], None], tiny_encoder: Path
) -> None:
    expected = Encoder.load(tiny_encoder).encode(TEXTS)

    async def test(routes: EmbeddingRoutes, client: AsyncOpenAI) -> None:
        assert encoder_pids() == []
        packed, plain, here, _ = await asyncio.gather(
            client.embeddings.create(model=NAME, input=TEXTS),
            client.embeddings.create(model=NAME, input=TEXTS, encoding_format="float"),
            routes.embed(TEXTS, model=NAME),
            asyncio.to_thread(_of_the_sync_client, str(client.base_url)),
        )
        for vectors in ([row.embedding for row in packed.data], here):
            assert (np.array(vectors) * expected).sum(1).min() > 0.999
        assert [len(row.embedding) for row in plain.data] == [24] * 3
        assert packed.usage == plain.usage
        (first,) = encoder_pids()
        os.kill(first, signal.SIGKILL)
        again = await client.embeddings.create(model=NAME, input=TEXTS)
        assert (np.array([row.embedding for row in again.data]) * expected).sum(1).min() > 0.999
        (second,) = encoder_pids()
        assert second != first
        many = await routes.embed(["a", *["z"] * 2048, "b"], model=NAME)
        assert len(many) == 2050
        assert np.dot(many[1], many[2048]) > 0.999
        with pytest.raises(Refusal, match="the input at index 1 has 33") as caught:
            await routes.embed(["a", "a " * 31], model=NAME)
        assert caught.value.status == 400
        with pytest.raises(openai.BadRequestError, match="the input at index 0 has 33"):
            await client.embeddings.create(model=NAME, input="a " * 31)

    api(test)
    assert encoder_pids() == []


def _of_the_sync_client(url: str) -> None:
    with OpenAI(base_url=url, api_key="any", max_retries=0) as client:
        answer = client.embeddings.create(model=NAME, input="z")
    assert len(answer.data[0].embedding) == 24


def test_what_is_refused_starts_no_process(api: Callable[[Test], None]) -> None:
    async def test(routes: EmbeddingRoutes, client: AsyncOpenAI) -> None:
        assert routes.names == (ENCODER, NAME)
        with pytest.raises(openai.NotFoundError, match=f"makes no embeddings.*{ENCODER}, {NAME}"):
            await client.embeddings.create(model="gpt-4o", input="a")
        with pytest.raises(openai.BadRequestError, match="the input at index 0 is empty"):
            await client.embeddings.create(model=NAME, input="")
        with pytest.raises(Refusal, match="makes no embeddings"):
            await routes.embed(["a"], model="gpt-4o")
        assert await routes.embed([], model=NAME) == []
        assert encoder_pids() == []

    api(test)


def test_an_encoder_that_cannot_be_had_is_a_503_that_says_why(api: Callable[[Test], None]) -> None:
    folder = home() / "models" / ENCODER
    folder.mkdir(parents=True)
    (folder / CARD).write_text('{"revision": "another"}')

    async def test(routes: EmbeddingRoutes, client: AsyncOpenAI) -> None:
        with pytest.raises(
            openai.InternalServerError, match="was made from another file"
        ) as caught:
            await client.embeddings.create(model=ENCODER, input="a")
        assert caught.value.status_code == 503
        with pytest.raises(ModelError, match="tunesmith models pull"):
            await routes.embed(["a"])

    api(test)
