"""Sampling: continuous batching over one base and its adapters, shared prefixes held once.

A prompt comes as prefix and rest (template.PromptIds). The keys and values of a prefix are
computed once, kept, and read by every row that begins with it; each row owns only what follows.
Both parts of a row's attention are joined by their log-sum-exp.

An answer must not depend on who shares its batch. So each forward pass has one of a few fixed
sizes (padded), rows attend by themselves, and what is shared is decided by the row alone. A model that
cannot share is read row by row (passes.Apart).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from tunesmith.errors import AdapterError
from tunesmith.models.cache import BLOCK
from tunesmith.models.constrain import Constraint, Grammar
from tunesmith.models.draw import draw, penalised
from tunesmith.models.kernels import exact
from tunesmith.models.load import LoadedModel
from tunesmith.models.passes import passes

Finish = Literal["stop", "length", "failed"]
"""Why an answer ends: its turn did, it was cut, or its grammar cannot be followed any further."""
ADMIT = 2048
"""Most prompt tokens that are taken in between two decode steps, so that others do not stall."""


@dataclass(frozen=True, slots=True)
class Request:
    """One answer to be sampled; `prefix + prompt` are its ids.

    Attributes:
        bias: (token, what is added to its logit) pairs.
        grammar: what the answer is held to.
    """

    id: str
    prefix: tuple[int, ...]
    prompt: tuple[int, ...]
    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    top_logprobs: int = 0
    adapter: str | None = None
    bias: tuple[tuple[int, float], ...] = ()
    grammar: Grammar | None = None


@dataclass(frozen=True, slots=True)
class Token:
    """One sampled token. `logprob` is the model's own: before penalties, bias, grammar and draw.

    finish is "stop" when the token ends the turn (it is not text), "length" at max_tokens.
    """

    request: str
    id: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    finish: Finish | None


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """An answer whose log-probability is asked for, with the likeliest tokens in its places."""

    prefix: tuple[int, ...]
    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    adapter: str | None = None
    top_logprobs: int = 0


@dataclass(slots=True)
class _Row:
    """A request that is being answered; its place among the passes' rows is that in the list."""

    request: Request
    generator: torch.Generator
    constraint: Constraint | None
    bias: tuple[Tensor, Tensor] | None
    last: int = -1
    made: int = 0
    failed: bool = False
    counts: Counter[int] = field(default_factory=Counter[int])
    """How often each token was sampled, for the penalties."""


class Sampler:
    """Answers requests over a model and its adapters, one token a step for every active row.

    Args:
        model: frozen; its adapters are added here by name.
        max_rows: rows that are decoded together.
    """

    def __init__(self, model: LoadedModel, *, max_rows: int = 32) -> None:
        self.model, self.max_rows = model, max_rows
        self._waiting: deque[Request] = deque()
        self._rows: list[_Row] = []
        self._passes = passes(model, max_rows)

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names that requests may use."""
        return tuple(self.model.adapters.settings)

    @property
    def idle(self) -> bool:
        """Nothing is waiting or being answered."""
        return not self._waiting and not self._rows

    @property
    def _free(self) -> int:
        return self.max_rows - len(self._rows)

    def add_adapter(self, name: str, folder: Path) -> None:
        """Load an adapter; one of the same name is replaced.

        Raises:
            AdapterError: it belongs to other weights, is incomplete or of another kind; or requests
                are being answered with the one that has its name.
        """
        self._leave_alone(name)
        self.model.adapters.load(name, folder, weights_hash=self.model.weights_hash)
        self._passes.forget(name)
        self.model.adapters.settle(name)

    def remove_adapter(self, name: str) -> None:
        """Forget an adapter.

        Raises:
            AdapterError: requests are being answered with it.
        """
        self._leave_alone(name)
        self._passes.forget(name)
        self.model.adapters.remove(name)

    def _leave_alone(self, name: str) -> None:
        """Refuse to change an adapter under the requests that go through it."""
        asked = [row.request for row in self._rows] + list(self._waiting)
        count = sum(request.adapter == name for request in asked)
        if count:
            raise AdapterError(
                f"the adapter {name} is answering {count} requests",
                expected="an adapter that is not in use",
                remedy="Try again when they are done.",
            )

    def submit(self, request: Request) -> None:
        """Queue a request.

        Raises:
            ModelError: its prompt is longer than the context.
        """
        self.model.check_length(len(request.prefix) + len(request.prompt))
        self._waiting.append(request)

    @torch.inference_mode()
    def cancel(self, request_id: str) -> None:
        """Drop a request, wherever it is; unknown ids are ignored."""
        self._waiting = deque(item for item in self._waiting if item.id != request_id)
        for slot, row in enumerate(self._rows):
            if row.request.id == request_id:
                self._leave(slot)
                return

    @torch.inference_mode()
    def step(self) -> list[Token]:
        """Take in waiting rows, then one token for each row that was active before."""
        out: list[Token] = []
        if self._rows:
            hidden = self._passes.go_on([row.last for row in self._rows])
            out = self._sample(list(self._rows), hidden)
        # Answered rows have left: the rows that remain are the first ones.
        joined = self._admit()
        if joined:
            hidden = self._passes.join([row.request for row in joined])
            out += self._sample(joined, hidden)
        return out

    @torch.inference_mode()
    def read(self, sequences: Sequence[ScoreRequest]) -> list[list[Token]]:
        """Each token of each answer as if it had been sampled, on the path that answers take.

        Raises:
            ModelError: prompt and answer are longer than the context.
        """
        for item in sequences:
            self.model.check_length(len(item.prefix) + len(item.prompt) + len(item.answer))
        out: list[list[Token]] = []
        for item, hidden in zip(sequences, self._passes.score(sequences), strict=True):
            logits = exact(self._logits(hidden, [item.adapter] * len(item.answer)))
            wanted = torch.tensor(item.answer, device=logits.device)
            total = logits.logsumexp(1)
            picked = (logits.gather(1, wanted[:, None]).squeeze(1) - total).tolist()
            tops = _top(logits, total, [item.top_logprobs] * len(item.answer))
            said = zip(item.answer, picked, tops, strict=True)
            out.append([Token("", token, logprob, top, None) for token, logprob, top in said])
        return out

    def score(self, sequences: Sequence[ScoreRequest]) -> list[list[float]]:
        """Log-probability of each token of each answer; see `read`."""
        return [[token.logprob for token in answer] for answer in self.read(sequences)]

    def _admit(self) -> list[_Row]:
        joined: list[_Row] = []
        tokens = 0
        # Those that will fit, the shortest first: neighbours of like length are read together.
        free = [self._waiting.popleft() for _ in range(min(self._free, len(self._waiting)))]
        free.sort(key=lambda request: len(request.prompt), reverse=True)
        if free:
            # Once for all of them, and for what most of them will write.
            longest = max(len(item.prompt) + min(item.max_tokens, BLOCK) for item in free)
            self._passes.reserve(len(self._rows) + len(free), longest)
        while free and tokens < ADMIT:
            request = free.pop()
            seed = request.seed
            generator = torch.Generator()
            if seed is None:
                generator.seed()
            else:
                generator.manual_seed(seed % 2**63)
            grammar = request.grammar
            row = _Row(
                request, generator, grammar.begin() if grammar else None, self._bias(request)
            )
            self._rows.append(row)
            joined.append(row)
            tokens += len(request.prompt)
        self._waiting.extendleft(free)
        return joined

    def _bias(self, request: Request) -> tuple[Tensor, Tensor] | None:
        if not request.bias:
            return None
        tokens, values = (torch.tensor(x) for x in zip(*request.bias, strict=True))
        return tokens.to(self.model.device), values.to(self.model.device)

    def _logits(self, hidden: Tensor, adapters: Sequence[str | None]) -> Tensor:
        """Logits of some rows, each by its adapter's head, in passes of one size."""
        parts: list[Tensor] = []
        for start in range(0, len(hidden), self.max_rows):
            block = hidden[start : start + self.max_rows]
            padded = torch.nn.functional.pad(block, (0, 0, 0, self.max_rows - len(block)))
            logits = self.model.exact_head(padded)[: len(block)]
            asked = adapters[start : start + len(block)]
            for name in {name for name in asked if self.model.own_head(name)}:
                rows = [place for place, other in enumerate(asked) if other == name]
                logits[rows] = self.model.exact_head(padded, name)[rows]
            parts.append(logits)
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _sample(self, rows: Sequence[_Row], hidden: Tensor) -> list[Token]:
        """The next token of each row, from its last hidden state (rows, width)."""
        logits = exact(self._logits(hidden, [row.request.adapter for row in rows]))
        total = logits.logsumexp(1)
        asked = [row.request for row in rows]
        wanted = penalised(
            logits,
            [
                (row.counts, request.frequency_penalty, request.presence_penalty)
                for row, request in zip(rows, asked, strict=True)
            ],
        )
        chosen = wanted.argmax(1).tolist()
        for place, (row, request) in enumerate(zip(rows, asked, strict=True)):
            if request.temperature > 0 or request.grammar is not None or request.bias:
                chosen[place] = self._choose(row, wanted[place])
        tops = _top(logits, total, [request.top_logprobs for request in asked])
        picked = logits.gather(1, torch.tensor(chosen, device=logits.device)[:, None]).squeeze(1)
        out: list[Token] = []
        for row, token, logprob, top in zip(
            rows, chosen, (picked - total).tolist(), tops, strict=True
        ):
            row.last, row.made = token, row.made + 1
            row.counts[token] += 1
            out.append(Token(row.request.id, token, logprob, top, self._finish(row)))
        for token in out:
            if token.finish:
                self.cancel(token.request)
        return out

    def _choose(self, row: _Row, logits: Tensor) -> int:
        """A row's next token, from its logits (vocabulary,)."""
        request = row.request
        if row.bias is not None:
            tokens, values = row.bias
            logits = logits.index_add(0, tokens, values.to(logits.dtype))
        if row.constraint is not None:
            allowed = row.constraint.allowed()
            if allowed is None:
                row.failed = True
                return min(self.model.template.end_of_turn)
            barred = torch.from_numpy(~allowed).to(logits.device)
            logits = logits.masked_fill(barred, -torch.inf)
        if request.temperature > 0:
            token = draw(logits, request.temperature, request.top_p, row.generator)
        else:
            token = int(logits.argmax())
        if row.constraint is not None:
            row.constraint.take(token)
        return token

    def _finish(self, row: _Row) -> Finish | None:
        if row.failed:
            return "failed"
        if row.last in self.model.template.end_of_turn:
            return "stop"
        full = len(row.request.prefix) + len(row.request.prompt) + row.made >= self.model.context
        return "length" if row.made >= row.request.max_tokens or full else None

    def _leave(self, slot: int) -> None:
        """Free a slot: the last row moves into it, so that active rows stay the first ones."""
        self._passes.leave(slot)
        self._rows[slot] = self._rows[-1]
        self._rows.pop()


def _top(
    logits: Tensor, total: Tensor, counts: Sequence[int]
) -> list[tuple[tuple[int, float], ...]]:
    """The likeliest tokens of each row of logits (N, vocabulary), as many as it asks for."""
    most = max(counts, default=0)
    if not most:
        return [()] * len(counts)
    top = logits.topk(most, dim=1)
    values, indices = (top.values - total[:, None]).tolist(), top.indices.tolist()
    return [
        tuple(zip(indices[row][:count], values[row][:count], strict=True))
        for row, count in enumerate(counts)
    ]
