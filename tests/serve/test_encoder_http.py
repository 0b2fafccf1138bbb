from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import openai
import pytest
from numpy.typing import NDArray
from openai import AsyncOpenAI

from tunesmith.models.encoder import Encoder
from tunesmith.serve import encoder_http
from tunesmith.serve.encoder_http import Rounds, create_encoder_app

Test = Callable[[AsyncOpenAI], Awaitable[Any]]
TEXTS = ["My parcel is late", "z", "where is it now?"]


class Watched(Encoder):
    """An encoder that notes the rows of each round, can be held in it, and raises at "a a a"."""

    rounds: list[list[list[int]]]
    go: threading.Event

    def encode_ids(self, rows: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        self.rounds.append([list(row) for row in rows])
        self.go.wait()
        if [2, 4, 4, 4, 3] in self.rounds[-1]:
            raise RuntimeError("the weights are gone")
        return super().encode_ids(rows)


@pytest.fixture
def encoder(tiny_encoder: Path) -> Watched:
    made = Watched.load(tiny_encoder, dtype="float32")
    assert isinstance(made, Watched)
    made.rounds, made.go = [], threading.Event()
    made.go.set()
    return made


@pytest.fixture
def crashes() -> list[bool]:
    return []


@pytest.fixture
def ask(fake: ModuleType, encoder: Watched, crashes: list[bool]) -> Callable[[Test], None]:
    """Runs a test with the openai package against the encoder's app on loopback."""

    def run(test: Test) -> None:
        async def go() -> None:
            with ThreadPoolExecutor(max_workers=1) as thread:
                app = create_encoder_app(
                    encoder, thread, name="tiny", key="k", on_crash=lambda: crashes.append(True)
                )
                async with (
                    fake.serving(app) as url,
                    AsyncOpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0) as client,
                ):
                    await test(client)

        asyncio.run(go())

    return run


def test_the_sdk_reads_base64_and_floats_as_the_same_vectors(
    ask: Callable[[Test], None], encoder: Watched
) -> None:
    async def test(client: AsyncOpenAI) -> None:
        packed = await client.embeddings.create(model="tiny", input=TEXTS, user="me")
        plain = await client.embeddings.create(
            model="tiny", input=TEXTS, encoding_format="float", dimensions=24
        )
        raw = await client.embeddings.create(model="tiny", input="z", encoding_format="base64")
        ids = encoder.tokenize(TEXTS)
        given = await client.embeddings.create(model="tiny", input=ids)
        bare = await client.embeddings.create(model="tiny", input=ids[0][1:-1])
        assert [row.index for row in packed.data] == [0, 1, 2]
        assert packed.model == "tiny"
        assert packed.usage.prompt_tokens == packed.usage.total_tokens == sum(map(len, ids))
        assert bare.usage.prompt_tokens == len(ids[0])
        assert isinstance(raw.data[0].embedding, str)
        expected = encoder.encode(TEXTS)
        for answer in (packed, plain, given):
            found = np.array([row.embedding for row in answer.data])
            assert np.abs(found - expected).max() < 1e-6
        assert np.abs(np.array(bare.data[0].embedding) - expected[0]).max() < 1e-6

    ask(test)


def test_what_it_cannot_honour_is_refused_in_words(ask: Callable[[Test], None]) -> None:
    async def test(client: AsyncOpenAI) -> None:
        async def refused(**asked: Any) -> openai.APIStatusError:
            with pytest.raises(openai.APIStatusError) as caught:
                await client.embeddings.create(**{"model": "tiny", "input": "a", **asked})
            return caught.value

        error = await refused(input=["a", "a " * 31])
        assert (error.status_code, error.code) == (400, "context_length_exceeded")
        assert "is 32 tokens. However, the input at index 1 has 33" in error.message
        error = await refused(dimensions=12)
        assert (error.status_code, error.param) == (400, "dimensions")
        assert "vectors of 24 numbers, not of 12" in error.message
        for ids in ([58], [-1]):
            error = await refused(input=ids)
            assert (error.status_code, error.param) == (400, "input")
            assert "this model's own tokenizer, below 58" in error.message
        assert (await refused(model="other")).status_code == 404
        assert (await refused(extra_body={"colour": "red"})).code == "unknown_parameter"
        assert (await refused(encoding_format="int8")).param == "encoding_format"
        async with client.with_options(api_key="wrong") as stranger:
            with pytest.raises(openai.AuthenticationError):
                await stranger.embeddings.create(model="tiny", input="a")

    ask(test)


def test_a_round_takes_some_of_each_request_so_that_a_short_one_soon_has_its_turn(
    encoder: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder_http, "ROUND_TOKENS", 12)
    corpus, question = [[2, letter, 3] for letter in range(4, 16)], [[2, 20, 21, 3]]

    async def go() -> None:
        with ThreadPoolExecutor(max_workers=1) as thread:
            rounds = Rounds(encoder, thread)
            work = asyncio.create_task(rounds.run())
            encoder.go.clear()
            first = asyncio.create_task(rounds.encode(corpus))
            while not encoder.rounds:
                await asyncio.sleep(0.001)
            second, gone = (asyncio.create_task(rounds.encode(rows)) for rows in (question, corpus))
            await asyncio.sleep(0)
            gone.cancel()
            encoder.go.set()
            assert np.abs(await second - encoder.encode_ids(question)).max() < 1e-6
            assert not first.done()
            assert np.abs(await first - encoder.encode_ids(corpus)).max() < 1e-6
            work.cancel()
            await asyncio.wait({work})

    asyncio.run(go())
    # Alone it has the whole round; then half of one; the one who went has none.
    assert [len(rows) for rows in encoder.rounds[:2]] == [4, 3]
    assert question[0] in encoder.rounds[1]
    computed = [row for rows in encoder.rounds for row in rows]
    # Once by the rounds, once above.
    assert all(computed.count(row) == 2 for row in [*corpus, *question])


def test_a_crash_tells_who_waits_and_the_process(
    ask: Callable[[Test], None], crashes: list[bool]
) -> None:
    async def test(client: AsyncOpenAI) -> None:
        await client.embeddings.create(model="tiny", input="a")
        assert crashes == []
        with pytest.raises(openai.InternalServerError, match="stopped at its work") as caught:
            await client.embeddings.create(model="tiny", input=["z", "a a a"])
        assert caught.value.status_code == 503
        assert crashes == [True]

    ask(test)
    assert crashes == [True]
