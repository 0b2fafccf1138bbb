"""OpenAI's embeddings format, as the engine process and the server in front of it read it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Annotated, Any, Literal, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, PlainValidator

from tunesmith.serve.wire import Refusal

MAX_INPUTS = 2048
"""Most inputs of one request."""


def _inputs(value: object) -> list[str] | list[list[int]]:
    """What may be one text, texts, one text's ids or texts' ids, as a list of texts or of ids."""
    listed = [value] if isinstance(value, str) or _are(value, int) else value
    rows = cast("list[Any]", listed) if isinstance(listed, list) else []
    if not rows or not (_are(rows, str) or all(_are(row, int) for row in rows)):
        raise _invalid("send a string, a list of strings, token ids, or a list of token ids")
    if len(rows) > MAX_INPUTS:
        raise _invalid(f"{len(rows):,} inputs, expected at most {MAX_INPUTS:,}")
    for index, row in enumerate(rows):
        if not row:
            raise _invalid(f"the input at index {index} is empty")
    return rows


def _are(value: object, kind: type) -> bool:
    """A list of this type and no other, since true is no number; not an empty one."""
    items = cast("list[object]", value) if isinstance(value, list) else None
    return items is not None and all(type(item) is kind for item in items) and bool(items)


def _invalid(said: str) -> Refusal:
    return Refusal(f"Invalid value for 'input': {said}.", param="input", code="invalid_value")


class EmbeddingRequest(BaseModel):
    """POST /v1/embeddings. Token ids are those of the encoder's own tokenizer."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str
    input: Annotated[list[str] | list[list[int]], PlainValidator(_inputs)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    user: str | None = None


def embedding_list(
    vectors: NDArray[np.float32], model: str, *, tokens: int, as_base64: bool
) -> dict[str, Any]:
    """The answer to a request: vectors (N, width) of its N inputs, in their order."""
    return {
        "object": "list",
        "data": [
            {
                "object": "embedding",
                "index": index,
                "embedding": _written(vector) if as_base64 else vector.tolist(),
            }
            for index, vector in enumerate(vectors)
        ],
        "model": model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def _written(vector: NDArray[np.float32]) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def read_vectors(answer: dict[str, Any]) -> list[list[float]]:
    """The vectors of an answer in base64."""
    rows: Sequence[dict[str, Any]] = answer["data"]
    return [np.frombuffer(base64.b64decode(row["embedding"]), "<f4").tolist() for row in rows]
