"""A text that is gone on with, in the engine, written as OpenAI's older completions."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from tunesmith.models.generate import Request
from tunesmith.models.template import PromptIds
from tunesmith.serve.local_job import Generation, Job
from tunesmith.serve.text import Piece

KIND = "text_completion"
NOTHING = Piece("")


@dataclass(frozen=True, slots=True)
class Start:
    """One prompt: its ids, how many tokens may follow, and what of it is said again."""

    ids: tuple[int, ...]
    max_tokens: int
    echo: Piece = NOTHING


@dataclass(frozen=True, slots=True, kw_only=True)
class TextJob(Job):
    """A request for completions that was accepted; each of its prompts has `choices` answers."""

    streamed: ClassVar[str] = KIND
    starts: tuple[Start, ...]
    id: str = field(default_factory=lambda: f"cmpl-{secrets.token_hex(12)}")

    @property
    def prompt_tokens(self) -> int:
        """See Job."""
        return sum(len(start.ids) for start in self.starts)

    def requests(self) -> tuple[Request, ...]:
        """See Job; none where nothing is to be sampled."""
        return tuple(
            self.request(PromptIds((), start.ids), start.max_tokens, index)
            for index, start in enumerate(self._rows())
            if start.max_tokens
        )

    async def whole(self, generation: Generation) -> dict[str, Any]:
        """One `text_completion` body."""
        rows = self._rows()
        whole = [start.echo for start in rows]
        async for index, piece in generation.pieces():
            before = whole[index]
            whole[index] = Piece(
                before.text + piece.text,
                before.entries + piece.entries,
                piece.finish,
                before.offsets + self._moved(index, piece),
            )
        choices = [
            {
                "index": index,
                "text": piece.text,
                "logprobs": self._logprobs(piece.entries, piece.offsets),
                "finish_reason": piece.finish or "length",
            }
            for index, piece in enumerate(whole)
        ]
        return {**self.head(KIND), "choices": choices, "usage": generation.usage()}

    async def deltas(self, generation: Generation) -> AsyncIterator[dict[str, Any]]:
        """See Job."""
        for index, start in enumerate(self._rows()):
            if start.echo.text or not start.max_tokens:
                finish = None if start.max_tokens else "length"
                yield self._delta(index, start.echo, start.echo.offsets, finish)
        async for index, piece in generation.pieces():
            if piece.text or piece.entries or piece.finish:
                yield self._delta(index, piece, self._moved(index, piece), piece.finish)

    def _rows(self) -> list[Start]:
        """What each choice goes on from."""
        return [start for start in self.starts for _ in range(self.choices)]

    def _moved(self, index: int, piece: Piece) -> tuple[int, ...]:
        """Offsets in the whole text, of which the prompt may be a part."""
        start = len(self._rows()[index].echo.text)
        return tuple(start + place for place in piece.offsets)

    def _delta(
        self, index: int, piece: Piece, offsets: Sequence[int], finish: str | None
    ) -> dict[str, Any]:
        return {
            "index": index,
            "text": piece.text,
            "logprobs": self._logprobs(piece.entries, offsets) if piece.entries else None,
            "finish_reason": finish,
        }

    def _logprobs(
        self, entries: Sequence[dict[str, Any]], offsets: Sequence[int]
    ) -> dict[str, Any] | None:
        """Four lists, with a value for each token."""
        if not self.params.logprobs:
            return None
        top = [_likeliest(entry) for entry in entries] if self.params.top_logprobs else None
        return {
            "tokens": [entry["token"] for entry in entries],
            "token_logprobs": [entry["logprob"] for entry in entries],
            "top_logprobs": top,
            "text_offset": list(offsets),
        }


def _likeliest(entry: dict[str, Any]) -> dict[str, float] | None:
    """The likeliest tokens by their text, and the one that was taken."""
    if entry["logprob"] is None:
        return None
    top = {other["token"]: other["logprob"] for other in entry["top_logprobs"]}
    return {**top, entry["token"]: entry["logprob"]}
