"""A model on somebody else's server: every answer is counted, paid for once, and kept on disk."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import openai
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletion
from pydantic import TypeAdapter, ValidationError

from tunesmith.chat import Completion, Message, SamplingParams, Tool, to_openai
from tunesmith.client import OpenAIChat, connect
from tunesmith.errors import EngineError, OverBudget, UsageError
from tunesmith.sections import Endpoint

CONCURRENCY = 8
"""Requests under way at once: what the smallest rate limits bear."""
RETRIES = 6
"""Times a request is sent again after 408, 409, 429, 5xx or a lost connection: about half a minute
of waiting in all, or what Retry-After says, up to two minutes each time."""
TIMEOUT = 300.0
"""Seconds for one answer: models that think are slow."""
EMPTY = 4
"""So many answers, all of them empty, are no accident."""
OPTIONAL = {"temperature": None, "seed": None, "max_tokens": "max_completion_tokens"}
"""What a server may refuse and is then not sent, or sent under its newer name."""
_ANSWER = TypeAdapter(Completion)


@dataclass(frozen=True, slots=True)
class Spent:
    """What the answers of an endpoint came to.

    Attributes:
        answers: all that were given; `kept` of them were read from disk and cost nothing again.
        empty: answers with neither text nor calls.
        usd: what all of them cost at the endpoint's prices; None where a price is not known.
        left_out: parameters that the server refused, so that its own values held.
    """

    answers: int
    kept: int
    empty: int
    tokens_in: int
    tokens_out: int
    usd: float | None
    left_out: tuple[str, ...] = ()


def cost(endpoint: Endpoint, tokens_in: float, tokens_out: float) -> float | None:
    """US$ of so many tokens; None where a price that it takes is not known."""
    prices = ((endpoint.usd_per_1m_in, tokens_in), (endpoint.usd_per_1m_out, tokens_out))
    if any(price is None for price, _ in prices):
        return None
    return sum((price or 0.0) * tokens for price, tokens in prices) / 1e6


class EndpointChat(OpenAIChat):
    """The model of an endpoint: `open_endpoint` makes one.

    Args:
        client: the connection.
        endpoint: which model, its prices and the budget.
        section: the recipe's name for it, as in `external`.
        folder: where answers are kept.
        before: US$ that other openings of the same run have counted.
    """

    def __init__(
        self,
        client: AsyncOpenAI,
        endpoint: Endpoint,
        *,
        section: str,
        folder: Path,
        before: float = 0.0,
    ) -> None:
        super().__init__(client, endpoint.model)
        self._endpoint, self._section, self._folder = endpoint, section, folder
        self._spent, self._before = Spent(0, 0, 0, 0, 0, cost(endpoint, 0, 0)), before
        self._slots = asyncio.Semaphore(CONCURRENCY)
        self._settled = asyncio.Condition()
        self._reserved: list[float] = []
        self._refused: set[str] = set()

    @property
    def spent(self) -> Spent:
        """What was counted so far."""
        return replace(self._spent, left_out=tuple(sorted(self._refused)))

    async def complete(
        self, messages: Sequence[Message], params: SamplingParams, tools: Sequence[Tool] = ()
    ) -> Completion:
        """The model's answer, or the one that it once gave to the same request.

        Raises:
            OverBudget: the budget leaves no room for it.
            EngineError: as `OpenAIChat.complete`; or answer after answer is empty.
        """
        params = replace(params, max_tokens=self._endpoint.max_tokens or params.max_tokens)
        asked = [self._endpoint.base_url, self.model, asdict(params), [*map(dict, tools)]]
        asked.append(
            [to_openai(replace(message, weight=None, cache=False)) for message in messages]
        )
        text = json.dumps(asked, sort_keys=True)
        path = self._folder / f"{hashlib.sha256(text.encode()).hexdigest()}.json"
        kept = _read(path)
        if kept is not None:
            self._count(kept)
            return kept
        async with self._slots, self._room_for(len(text), params):
            answer = await super().complete(messages, params, tools)
            _keep(path, answer)
            self._count(answer)
        return answer

    def _count(self, answer: Completion) -> None:
        old, usage = self._spent, answer.usage
        tokens_in = old.tokens_in + usage.prompt_tokens
        tokens_out = old.tokens_out + usage.completion_tokens
        self._spent = Spent(
            old.answers + 1,
            old.kept + answer.kept,
            old.empty + (not answer.text.strip() and not answer.tool_calls),
            tokens_in,
            tokens_out,
            cost(self._endpoint, tokens_in, tokens_out),
        )
        if self._spent.empty == self._spent.answers >= EMPTY:
            raise EngineError(
                f"the first {EMPTY} answers of {self.model} are empty",
                remedy="A model that thinks needs room for it: "
                f"--set {self._section}.max_tokens=2000",
            )

    @asynccontextmanager
    async def _room_for(self, characters: int, params: SamplingParams) -> AsyncGenerator[None]:
        """Holds back what a request may cost at most: a token is at least one character of JSON."""
        budget = self._endpoint.budget_usd
        if budget is None:
            yield
            return
        if params.max_tokens is None:
            raise UsageError(
                f"{self._section}.budget_usd without a limit on the length of an answer",
                remedy=f"Type --set {self._section}.max_tokens=1000",
            )
        most = cost(self._endpoint, characters, params.max_tokens) or 0.0
        async with self._settled:
            while self._reserved and self._counted + sum(self._reserved) + most > budget:
                await self._settled.wait()
            if self._counted + most > budget:
                raise self._over(budget, most)
            self._reserved.append(most)
        try:
            yield
        finally:
            async with self._settled:
                self._reserved.remove(most)
                self._settled.notify_all()

    @property
    def _counted(self) -> float:
        return self._before + (self._spent.usd or 0.0)

    def _over(self, budget: float, most: float) -> OverBudget:
        return OverBudget(
            f"the answers of {self.model} cost US$ {self._counted:.4f} so far, and the next one may "
            f"cost {most:.4f}: {self._section}.budget_usd is {budget:g}",
            remedy="All answers are kept. To go on from here, type the same command with "
            f"--set {self._section}.budget_usd={2 * max(budget, most):.3g}",
        )

    async def _ask(self, asked: dict[str, Any]) -> ChatCompletion:
        """Without what the server has refused: newer models take no temperature, for one."""
        while True:
            sent = {
                OPTIONAL[name] or name if name in self._refused else name: value
                for name, value in asked.items()
                if name not in self._refused or OPTIONAL[name]
            }
            try:
                return await super()._ask(sent)
            except EngineError as error:
                cause = error.__cause__
                name = cause.param if isinstance(cause, openai.BadRequestError) else None
                if name not in OPTIONAL or name not in sent:
                    raise
                self._refused.add(name)


def key_of(endpoint: Endpoint, section: str) -> str:
    """The key that the endpoint wants; "none" where it names no variable.

    Raises:
        UsageError: the variable that is to hold it is not set.
    """
    key = os.environ.get(endpoint.key_env) if endpoint.key_env else "none"
    if not key:
        raise UsageError(
            f"the environment variable {endpoint.key_env} is not set",
            expected=f"the key of {endpoint.base_url}, as {section}.key_env says",
            remedy=f"Type export {endpoint.key_env}=...",
        )
    return key


@asynccontextmanager
async def open_endpoint(
    endpoint: Endpoint, section: str, folder: Path, *, before: float = 0.0
) -> AsyncGenerator[EndpointChat]:
    """A connection to an endpoint; see `EndpointChat`.

    Raises:
        UsageError: the variable that is to hold the key is not set.
    """
    key = key_of(endpoint, section)
    client = connect(endpoint.base_url, key, timeout=TIMEOUT, retries=RETRIES)
    async with client:
        yield EndpointChat(client, endpoint, section=section, folder=folder, before=before)


def _read(path: Path) -> Completion | None:
    try:
        return replace(_ANSWER.validate_json(path.read_bytes()), kept=True)
    except (FileNotFoundError, ValidationError):
        return None


def _keep(path: Path, answer: Completion) -> None:
    """Written beside its place and renamed into it; others of this machine do not read it."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with NamedTemporaryFile("wb", dir=path.parent, delete=False) as file:
        file.write(_ANSWER.dump_json(answer))
    Path(file.name).replace(path)
