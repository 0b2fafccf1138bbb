"""The HTTP side of an encoder process: requests are computed together, in one thread."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response
from numpy.typing import NDArray

from tunesmith.errors import EngineError
from tunesmith.serve.encoder_wire import EmbeddingRequest, embedding_list
from tunesmith.serve.hangup import while_connected
from tunesmith.serve.local_process import private_app
from tunesmith.serve.wire import Refusal, unknown_model

ROUND_TOKENS = 8192
"""About how much is computed before those who came meanwhile get their turn."""


class Encoding(Protocol):
    """What the process needs of `models.encoder.Encoder`, which says more."""

    @property
    def max_tokens(self) -> int:
        """Longest text."""
        ...

    @property
    def width(self) -> int:
        """Numbers in a vector."""
        ...

    @property
    def vocabulary(self) -> int:
        """Ids are below this."""
        ...

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids with special tokens."""
        ...

    def framed(self, ids: Sequence[int]) -> list[int]:
        """Ids with special tokens."""
        ...

    def encode_ids(self, rows: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Vectors of texts."""
        ...


@dataclass(eq=False)
class _Job:
    """Texts of one request: which of them are still to be computed, and what came of the others."""

    rows: list[list[int]]
    vectors: NDArray[np.float32]
    done: asyncio.Future[None]
    left: deque[int] = field(default_factory=deque[int])

    def __post_init__(self) -> None:
        # Texts of about one length are computed together, without padding.
        self.left.extend(sorted(range(len(self.rows)), key=lambda place: len(self.rows[place])))

    def take(self, tokens: int) -> list[int]:
        """The next texts: one at least, and more while they have so many tokens together."""
        taken = [self.left.popleft()]
        tokens -= len(self.rows[taken[0]])
        while self.left and (tokens := tokens - len(self.rows[self.left[0]])) >= 0:
            taken.append(self.left.popleft())
        return taken


class Rounds:
    """Computes what many requests ask for: a round takes some texts of each that waits.

    So a short question does not wait for a whole corpus that another request brought.
    """

    def __init__(self, encoder: Encoding, thread: ThreadPoolExecutor) -> None:
        self._encoder, self._thread = encoder, thread
        self._waiting: list[_Job] = []
        self._came = asyncio.Event()

    async def encode(self, rows: list[list[int]]) -> NDArray[np.float32]:
        """Vectors (N, width) of N texts given as ids; one that is cancelled leaves the rounds.

        Raises:
            EngineError: the encoder broke down.
        """
        vectors = np.empty((len(rows), self._encoder.width), dtype=np.float32)
        job = _Job(rows, vectors, asyncio.get_running_loop().create_future())
        self._waiting.append(job)
        self._came.set()
        await job.done
        return vectors

    async def run(self) -> None:
        """Work until it is cancelled, or the encoder raises; whoever waits then is told."""
        try:
            while True:
                await self._came.wait()
                await self._round()
        finally:
            for job in self._waiting:
                if not job.done.done():
                    job.done.set_exception(EngineError("the encoder stopped at its work"))

    async def _round(self) -> None:
        self._waiting = [job for job in self._waiting if not job.done.done()]
        if not self._waiting:
            self._came.clear()
            return
        share = ROUND_TOKENS // len(self._waiting)
        taken = [(job, place) for job in self._waiting for place in job.take(share)]
        rows = [job.rows[place] for job, place in taken]
        loop = asyncio.get_running_loop()
        vectors = await loop.run_in_executor(self._thread, self._encoder.encode_ids, rows)
        for (job, place), vector in zip(taken, vectors, strict=True):
            job.vectors[place] = vector
            if not job.left and not job.done.done():
                job.done.set_result(None)


def create_encoder_app(
    encoder: Encoding,
    thread: ThreadPoolExecutor,
    *,
    name: str,
    key: str,
    on_crash: Callable[[], None] = lambda: None,
) -> FastAPI:
    """The app of one encoder process.

    Args:
        thread: the one thread that computes.
        name: what the encoder is called in requests.
        key: the bearer key that every request has to show.
        on_crash: called when the encoder raised.
    """
    rounds = Rounds(encoder, thread)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        work = asyncio.create_task(rounds.run())
        work.add_done_callback(lambda task: None if task.cancelled() else on_crash())
        yield
        work.cancel()
        await asyncio.wait({work})

    async def embeddings(body: EmbeddingRequest, request: HttpRequest) -> Response:
        if body.model != name:
            raise unknown_model(body.model)
        rows = await asyncio.to_thread(_rows, encoder, body)
        vectors = await while_connected(request, rounds.encode(rows))
        if vectors is None:
            return Response(status_code=499)
        tokens, as_base64 = sum(map(len, rows)), body.encoding_format == "base64"
        return JSONResponse(embedding_list(vectors, name, tokens=tokens, as_base64=as_base64))

    app = private_app(key, lifespan)
    app.add_api_route("/v1/embeddings", embeddings, methods=["POST"], response_model=None)
    return app


def _rows(encoder: Encoding, body: EmbeddingRequest) -> list[list[int]]:
    """Ids of every input, refused where the encoder cannot honour them."""
    if body.dimensions not in (None, encoder.width):
        raise Refusal(
            f"This model makes vectors of {encoder.width} numbers, not of {body.dimensions}.",
            param="dimensions",
            code="invalid_value",
        )
    texts = [item for item in body.input if isinstance(item, str)]
    given = [item for item in body.input if not isinstance(item, str)]
    if any(not 0 <= token < encoder.vocabulary for ids in given for token in ids):
        raise Refusal(
            f"Token ids are those of this model's own tokenizer, below {encoder.vocabulary}; "
            "other tokenizers' ids mean other words to it. Send text.",
            param="input",
            code="invalid_value",
        )
    rows = [*encoder.tokenize(texts), *map(encoder.framed, given)]
    for index, row in enumerate(rows):
        if len(row) > encoder.max_tokens:
            raise Refusal(
                f"This model's maximum context length is {encoder.max_tokens} tokens. However, the "
                f"input at index {index} has {len(row)}. Please shorten or split it.",
                param="input",
                code="context_length_exceeded",
            )
    return rows
