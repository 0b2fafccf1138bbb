"""The forward passes of sampling: prompts taken in, one more token for each row, answers scored.

`Shared` is for models that run a forest: keys and values of a prefix are computed once, kept, and
read by every row that begins with it. `Apart` is for the others: each row keeps what the model itself
keeps of it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from tunesmith.models.attention import Structure
from tunesmith.models.cache import Prefix, RowCache
from tunesmith.models.load import LoadedModel
from tunesmith.models.lora import Routing
from tunesmith.models.rows import Past, Rows
from tunesmith.models.serving import Decode, Prefill, RowSpan

PREFILL = 256
"""Tokens of a prefill pass: rows that fit are packed into exactly this many."""
PREFIX_TOKENS = 32_768
"""Most tokens of cached prefixes; the least recently used leave."""


class Prompt(Protocol):
    """What a row begins with: `prefix + prompt` are its ids."""

    @property
    def prefix(self) -> tuple[int, ...]:
        """Ids that other rows may begin with too."""
        ...

    @property
    def prompt(self) -> tuple[int, ...]:
        """Ids behind the prefix."""
        ...

    @property
    def adapter(self) -> str | None:
        """Which adapter computes the row."""
        ...


class Answered(Prompt, Protocol):
    """A prompt with its answer."""

    @property
    def answer(self) -> tuple[int, ...]:
        """Ids behind the prompt."""
        ...


class Passes(Protocol):
    """Rows in the places 0, 1, ..., and what is kept of each."""

    def reserve(self, rows: int, length: int) -> None:
        """Make room for so many rows of this many tokens behind their prefix."""
        ...

    def join(self, prompts: Sequence[Prompt]) -> Tensor:
        """Take rows in, behind those that are there; hidden states (n, width) of their last tokens."""
        ...

    def go_on(self, tokens: Sequence[int]) -> Tensor:
        """One more token for each row; its hidden states (rows, width)."""
        ...

    def leave(self, place: int) -> None:
        """Free a place: the last row moves into it, so that rows stay the first ones."""
        ...

    def score(self, sequences: Sequence[Answered]) -> list[Tensor]:
        """Hidden states (answer, width) that each token of an answer is told from."""
        ...

    def forget(self, adapter: str) -> None:
        """Drop what was computed through an adapter that changes or leaves."""
        ...


def passes(model: LoadedModel, max_rows: int) -> Passes:
    """The passes of a model, for at most so many rows at a time."""
    return Shared(model, max_rows) if model.rows is None else Apart(model, model.rows)


@dataclass(slots=True)
class _Kept:
    """A row of `Shared`; its slot in the cache is its place."""

    adapter: str | None
    prefix: Prefix | None
    length: int
    """Own tokens in the cache."""

    @property
    def depth(self) -> int:
        """Position of the next token."""
        return (self.prefix.length if self.prefix else 0) + self.length


class Shared:
    """Passes of a few fixed sizes over rows that share their prefixes."""

    def __init__(self, model: LoadedModel, max_rows: int) -> None:
        self.model, self.max_rows = model, max_rows
        self._rows: list[_Kept] = []
        self._cache = RowCache(model.device)
        self.prefixes: OrderedDict[tuple[str | None, tuple[int, ...]], Prefix] = OrderedDict()

    def reserve(self, rows: int, length: int) -> None:
        """See Passes."""
        self._cache.reserve(rows, length)

    def join(self, prompts: Sequence[Prompt]) -> Tensor:
        """See Passes."""
        first = len(self._rows)
        self._rows += [
            _Kept(item.adapter, self._prefix(item.adapter, item.prefix), len(item.prompt))
            for item in prompts
        ]
        spans = [
            RowSpan(item.prompt, row.adapter, row.prefix, slot=first + place)
            for place, (item, row) in enumerate(zip(prompts, self._rows[first:], strict=True))
        ]
        return torch.stack([hidden[-1] for hidden in self._prefill(spans)])

    def go_on(self, tokens: Sequence[int]) -> Tensor:
        """See Passes."""
        rows, device = self._rows, self.model.device
        filler = self.max_rows - len(rows)
        ids = torch.tensor([*tokens] + [0] * filler, device=device)
        depth = torch.tensor([row.depth for row in rows] + [0] * filler, device=device)
        lengths = [row.length for row in rows]
        self._cache.reserve(len(rows), max(lengths) + 1)
        structure = Decode(self._cache, lengths, [row.prefix for row in rows])
        hidden = self._hidden(ids, depth, structure, [row.adapter for row in rows])
        for row in rows:
            row.length += 1
        return hidden[: len(rows)]

    def leave(self, place: int) -> None:
        """See Passes."""
        last = len(self._rows) - 1
        if place != last:
            self._cache.move(last, place, self._rows[last].length)
            self._rows[place] = self._rows[last]
        self._rows.pop()

    def score(self, sequences: Sequence[Answered]) -> list[Tensor]:
        """See Passes."""
        spans = [
            RowSpan(
                item.prompt + item.answer[:-1],
                item.adapter,
                self._prefix(item.adapter, item.prefix),
                slot=None,
            )
            for item in sequences
        ]
        hidden = self._prefill(spans)
        return [part[len(item.prompt) - 1 :] for item, part in zip(sequences, hidden, strict=True)]

    def forget(self, adapter: str) -> None:
        """See Passes."""
        for key in [key for key in self.prefixes if key[0] == adapter]:
            del self.prefixes[key]

    def _prefix(self, adapter: str | None, ids: tuple[int, ...]) -> Prefix | None:
        """The keys and values of a prefix, computed at its first use."""
        if not ids:
            return None
        key = (adapter, ids)
        if key not in self.prefixes:
            store = Prefix(len(ids))
            self._prefill([RowSpan(ids, adapter, None, slot=None, into=store)])
            self.prefixes[key] = store
            held = sum(item.length for item in self.prefixes.values())
            while held > PREFIX_TOKENS and len(self.prefixes) > 1:
                _, gone = self.prefixes.popitem(last=False)
                held -= gone.length
        self.prefixes.move_to_end(key)
        return self.prefixes[key]

    def _prefill(self, spans: Sequence[RowSpan]) -> list[Tensor]:
        """Hidden states (L, width) of each span's tokens; their keys go where the span says."""
        out: dict[int, Tensor] = {}
        for chunk in _chunks([len(span.ids) for span in spans]):
            members = [spans[place] for place in chunk]
            hidden = self._pass(members)
            start = 0
            for place, span in zip(chunk, members, strict=True):
                out[place] = hidden[start : start + len(span.ids)]
                start += len(span.ids)
        return [out[place] for place in range(len(spans))]

    def _pass(self, spans: Sequence[RowSpan]) -> Tensor:
        ids = [token for span in spans for token in span.ids]
        depth = [span.above + place for span in spans for place in range(len(span.ids))]
        filler = -len(ids) % PREFILL
        device = self.model.device
        return self._hidden(
            torch.tensor(ids + [0] * filler, device=device),
            torch.tensor(depth + [0] * filler, device=device),
            Prefill(spans, self._cache),
            [span.adapter for span in spans for _ in span.ids],
        )

    def _hidden(
        self, ids: Tensor, depth: Tensor, tree: Structure, adapters: Sequence[str | None]
    ) -> Tensor:
        """One pass, each token through its adapter."""
        with routed(self.model.adapters.routing, _runs(adapters)):
            return self.model.hidden(ids, depth, tree)


@dataclass(slots=True)
class _Read:
    """A row of `Apart`: its ids, and what the model keeps of them."""

    adapter: str | None
    ids: list[int]
    past: Past = field(default_factory=dict[str, object])


class Apart:
    """Passes of one row each, through the model's own forward."""

    def __init__(self, model: LoadedModel, rows: Rows) -> None:
        self.model, self.rows = model, rows
        self._held: list[_Read] = []

    def reserve(self, rows: int, length: int) -> None:
        """Each row keeps its own memory."""

    def join(self, prompts: Sequence[Prompt]) -> Tensor:
        """See Passes."""
        joined = [_Read(item.adapter, [*item.prefix, *item.prompt]) for item in prompts]
        self._held += joined
        return torch.stack([self._last(row) for row in joined])

    def go_on(self, tokens: Sequence[int]) -> Tensor:
        """See Passes."""
        for row, token in zip(self._held, tokens, strict=True):
            row.ids.append(token)
        return torch.stack([self._last(row) for row in self._held])

    def leave(self, place: int) -> None:
        """See Passes."""
        self._held[place] = self._held[-1]
        self._held.pop()

    def score(self, sequences: Sequence[Answered]) -> list[Tensor]:
        """See Passes."""
        out: list[Tensor] = []
        for item in sequences:
            row = _Read(item.adapter, [*item.prefix, *item.prompt, *item.answer[:-1]])
            out.append(self._hidden(row)[len(item.prefix) + len(item.prompt) - 1 :])
        return out

    def forget(self, adapter: str) -> None:
        """Nothing outlives its row."""

    def _last(self, row: _Read) -> Tensor:
        return self._hidden(row)[-1]

    def _hidden(self, row: _Read) -> Tensor:
        """Hidden states (L, width) of the row's tokens that were not read before."""
        fresh = row.ids[-1:] if row.past else row.ids
        spans = ((0, len(fresh), row.adapter),) if row.adapter is not None else ()
        with routed(self.model.adapters.routing, spans):
            hidden, row.past = self.rows.read(fresh, row.past, self.model.device)
        return hidden


@contextmanager
def routed(routing: Routing, spans: tuple[tuple[int, int, str], ...]) -> Generator[None]:
    """Send the tokens of a pass through their adapters; afterwards the routing is as it was."""
    routing.spans = spans
    try:
        yield
    finally:
        routing.spans = None


def _runs(names: Sequence[str | None]) -> tuple[tuple[int, int, str], ...]:
    """Maximal runs of one adapter as (start, end, name)."""
    runs: list[tuple[int, int, str]] = []
    start = 0
    for end in range(1, len(names) + 1):
        if end == len(names) or names[end] != names[start]:
            name = names[start]
            if name is not None:
                runs.append((start, end, name))
            start = end
    return tuple(runs)


def _chunks(lengths: Sequence[int]) -> list[list[int]]:
    """Places grouped so that each group fits one pass; a longer one has a pass to itself."""
    chunks: list[list[int]] = []
    room = 0
    for place, length in enumerate(lengths):
        if length > room:
            chunks.append([])
            room = max(PREFILL, length)
        chunks[-1].append(place)
        room = room - length if length <= PREFILL else 0
    return chunks
