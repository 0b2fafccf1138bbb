"""Embeddings, forwarded to a sentence encoder that is started at its first use."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
from fastapi import APIRouter, Request
from fastapi.responses import Response

from tunesmith.api.pages import router
from tunesmith.models import fetch
from tunesmith.models.catalog import ENCODER, ENCODERS
from tunesmith.serve.encoder_wire import MAX_INPUTS, EmbeddingRequest, read_vectors
from tunesmith.serve.engines import ENCODER_COMMAND
from tunesmith.serve.hangup import while_connected
from tunesmith.serve.router import Deployment, Router
from tunesmith.serve.wire import Refusal

JSON = "application/json"


class EmbeddingRoutes:
    """POST /v1/embeddings, and the same for callers in this process.

    Args:
        logs: folder for the encoders' logs.
        names: names that requests may use beside those of the catalogue, as
            text-embedding-3-small, each with what `models.fetch.resolve` finds an encoder by.
    """

    def __init__(
        self, http: httpx.AsyncClient, *, logs: Path, names: Mapping[str, str] | None = None
    ) -> None:
        self._http = http
        self._names = {name: name for name in ENCODERS} | dict(names or {})
        self._router = Router(logs=logs, command=ENCODER_COMMAND)

    @property
    def names(self) -> tuple[str, ...]:
        """Names that requests may use."""
        return tuple(self._names)

    def routes(self) -> APIRouter:
        """The routes."""
        out = router()
        out.add_api_route("/embeddings", self.embeddings, methods=["POST"], response_model=None)
        return out

    async def embeddings(self, body: EmbeddingRequest, request: Request) -> Response:
        """POST /v1/embeddings."""
        answer = await while_connected(request, self._send(body))
        if answer is None:
            return Response(status_code=499)
        return Response(answer.content, answer.status_code, media_type=JSON)

    async def embed(self, texts: Sequence[str], *, model: str = ENCODER) -> list[list[float]]:
        """The vectors of texts, in their order; each has length 1.

        Raises:
            Refusal: a text is empty or longer than the encoder reads, or no encoder has that name.
            ModelError: the encoder cannot be had.
            EngineError: it does not start.
        """
        vectors: list[list[float]] = []
        for start in range(0, len(texts), MAX_INPUTS):
            asked = {"model": model, "input": list(texts[start : start + MAX_INPUTS])}
            body = EmbeddingRequest.model_validate({**asked, "encoding_format": "base64"})
            answer = await self._send(body)
            if not answer.is_success:
                said = answer.json()["error"]
                raise Refusal(said["message"], status=answer.status_code, param=said["param"])
            vectors += read_vectors(answer.json())
        return vectors

    async def close(self) -> None:
        """Stop the encoders."""
        await self._router.close()

    async def _send(self, body: EmbeddingRequest) -> httpx.Response:
        """The encoder's answer; one that ends meanwhile is started anew and asked again.

        Asking for vectors changes nothing, so it may be done again.
        """
        deployment = await self._deployment(body.model)
        payload: dict[str, Any] = {**body.model_dump(exclude_unset=True), "model": deployment.name}
        for _ in range(3):
            # Others wait for the same encoder: its start goes on when this client hangs up.
            engine = await asyncio.shield(self._router.engine(deployment))
            headers = {"authorization": f"Bearer {engine.key}"}
            try:
                return await self._http.post(
                    f"{engine.url}/v1/embeddings", json=payload, headers=headers
                )
            except httpx.TransportError:
                engine.lost()
        raise Refusal(
            "The encoder broke off at this request; its log says why.",
            status=502,
            kind="server_error",
            code="engine_failed",
        )

    async def _deployment(self, name: str) -> Deployment:
        if name not in self._names:
            raise Refusal(
                f"The model '{name}' does not exist or makes no embeddings. These do: "
                f"{', '.join(self._names)}.",
                status=404,
                param="model",
                code="model_not_found",
            )
        spec = await asyncio.to_thread(fetch.resolve, self._names[name])
        return Deployment(spec.name, spec.name, spec.folder)
