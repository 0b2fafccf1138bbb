"""One request in the engine: what is sampled for it, and the samples as they come."""

from __future__ import annotations

import asyncio
import hashlib
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from tunesmith.chat import SamplingParams
from tunesmith.errors import TunesmithError
from tunesmith.models.constrain import Grammar
from tunesmith.models.generate import Request, Token
from tunesmith.models.template import ChatTemplate, PromptIds
from tunesmith.serve.line import Line
from tunesmith.serve.local_loop import SamplerThread
from tunesmith.serve.text import AnswerText, Piece
from tunesmith.serve.wire import Refusal, as_refusal, event

LEAST = -9999.0
"""What OpenAI writes for a log-probability that is too small to tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job(ABC):
    """A request that was accepted: what to sample, and how to write it down."""

    streamed: ClassVar[str]
    """What an event is called."""
    id: str
    model: str
    adapter: str | None
    params: SamplingParams
    choices: int
    include_usage: bool
    fingerprint: str
    bias: tuple[tuple[int, float], ...] = ()
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    @abstractmethod
    def prompt_tokens(self) -> int:
        """Tokens of its prompts, each counted once."""

    @abstractmethod
    def requests(self) -> tuple[Request, ...]:
        """One request for each choice."""

    @abstractmethod
    async def whole(self, generation: Generation) -> dict[str, Any]:
        """The answer as one body."""

    @abstractmethod
    def deltas(self, generation: Generation) -> AsyncIterator[dict[str, Any]]:
        """The choices of the events, one each."""

    async def events(self, generation: Generation) -> AsyncIterator[str]:
        """The answer as server-sent events."""
        more = {"usage": None} if self.include_usage else {}
        try:
            async for choice in self.deltas(generation):
                yield event({**self.head(self.streamed), "choices": [choice], **more})
            if self.include_usage:
                tail = {"choices": [], "usage": generation.usage()}
                yield event({**self.head(self.streamed), **tail})
        except TunesmithError as error:
            yield event(as_refusal(error).body())
        else:
            yield "data: [DONE]\n\n"

    def head(self, kind: str) -> dict[str, Any]:
        """What every body and chunk of this answer begins with."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }

    def request(
        self, prompt: PromptIds, max_tokens: int, index: int, grammar: Grammar | None = None
    ) -> Request:
        """The request of one choice."""
        return Request(
            id=f"{self.id}-{index}",
            prefix=prompt.prefix,
            prompt=prompt.prompt,
            max_tokens=max_tokens,
            temperature=self.params.temperature,
            top_p=self.params.top_p,
            seed=_seed(self.params.seed, index % self.choices),
            frequency_penalty=self.params.frequency_penalty,
            presence_penalty=self.params.presence_penalty,
            top_logprobs=self.params.top_logprobs,
            adapter=self.adapter,
            bias=self.bias,
            grammar=grammar,
        )


def _seed(seed: int | None, index: int) -> int | None:
    """Choice 0 is what n=1 gives; the others are independent of it and of each other."""
    if seed is None or index == 0:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed}/{index}".encode()).digest()[:6], "big")


def described(template: ChatTemplate, token: Token) -> dict[str, Any]:
    """A token with its log-probability and those of the likeliest, as chat completions have it."""
    top = [_described(template, other, logprob) for other, logprob in token.top]
    return {**_described(template, token.id, token.logprob), "top_logprobs": top}


def _described(template: ChatTemplate, token: int, logprob: float) -> dict[str, Any]:
    text = template.decode([token])
    # Part of a character has no text of its own, so its bytes cannot be told from here.
    whole = "\ufffd" not in text
    return {
        "token": text,
        "logprob": max(logprob, LEAST),
        "bytes": list(text.encode()) if whole else None,
    }


class Generation:
    """The samples of one job. They are in the line from the start, and leave it at `close`.

    Args:
        spaced: the text goes on from that of the prompt, so a space that it begins with counts.

    Raises:
        Refusal: 429, the line is full.
    """

    def __init__(
        self,
        job: Job,
        template: ChatTemplate,
        thread: SamplerThread,
        line: Line,
        *,
        spaced: bool = False,
    ) -> None:
        self._job, self._template, self._thread, self._line = job, template, thread, line
        requests = job.requests()
        self._requests = {request.id: index for index, request in enumerate(requests)}
        self._answers = [
            AnswerText(template.decode, job.params.stop, request.prompt[-1:] if spaced else ())
            for request in requests
        ]
        self._open = set(self._requests)
        self._mailbox: asyncio.Queue[Token | TunesmithError] = asyncio.Queue()
        line.enter(len(requests))
        loop = asyncio.get_running_loop()

        def deliver(item: Token | TunesmithError) -> None:
            loop.call_soon_threadsafe(self._mailbox.put_nowait, item)

        for request in requests:
            thread.submit(request, deliver)

    async def close(self) -> None:
        """Free what still decodes."""
        for request_id in self._open:
            self._thread.cancel(request_id)
        if self._open:
            self._line.leave(len(self._open))
        self._open.clear()

    async def pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        """(index of the choice, what it gained), until every choice is finished.

        Raises:
            TunesmithError: the engine could not go on with a choice.
        """
        while self._open:
            item = await self._mailbox.get()
            if isinstance(item, TunesmithError):
                raise item
            if item.request not in self._open:
                continue
            if item.finish == "failed":
                raise Refusal(
                    "The schema became too complex to follow in the midst of the answer. "
                    "Ask for less, or with fewer patterns and optional properties.",
                    param="response_format",
                )
            index = self._requests[item.request]
            entry = described(self._template, item) if self._job.params.logprobs else None
            piece = self._answers[index].feed(item.id, entry, item.finish)
            if piece.finish:
                self._open.discard(item.request)
                self._line.leave()
                if not item.finish:
                    self._thread.cancel(item.request)
            yield index, piece

    def usage(self) -> dict[str, int]:
        """Tokens in, tokens sampled over all choices, and both; end-of-turn tokens count."""
        prompt = self._job.prompt_tokens
        sampled = sum(answer.tokens for answer in self._answers)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": sampled,
            "total_tokens": prompt + sampled,
        }
