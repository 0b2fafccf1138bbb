"""Lengths in the model's own tokens, and what becomes of rows that are too long."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Literal

from tunesmith.chat import Message
from tunesmith.checks.report import Finding, Ledger
from tunesmith.checks.row import Marked, Row, look, muted, trains
from tunesmith.checks.template import Rendered, render, render_row
from tunesmith.data.examples import Conversation, Document, Example, Source
from tunesmith.errors import RowError
from tunesmith.models import document
from tunesmith.models.template import ChatTemplate

TooLong = Literal["stop", "split", "drop"]
NEAR_FULL = 0.9
TOO_LONG = "too long"
"""How the reason of a row that was refused for its length begins."""


class Refiner:
    """Renders each row while it is read, and refuses or splits what cannot be trained whole.

    A conversation that is split becomes consecutive pieces: the system message and as many whole
    exchanges as fit. Each assistant turn is trained in exactly one piece; where a piece has room
    left, the exchanges before it stand there again as context with weight 0. A document becomes
    consecutive passages of like length, cut between paragraphs, lines or words.

    Rows are read anew at every pass; one byte a row remembers which ones have passed as they are,
    so that they are rendered once.
    """

    def __init__(self, template: ChatTemplate, max_tokens: int, too_long: TooLong) -> None:
        self._template, self._max_tokens, self._too_long = template, max_tokens, too_long
        self._dropped: dict[Source, int] = {}
        self._whole: dict[str, bytearray] = {}

    @property
    def dropped_tokens(self) -> int:
        """Tokens of the rows refused as too long so far; a row read again counts once."""
        return sum(self._dropped.values())

    def __call__(self, example: Example) -> Sequence[Example]:
        """The row itself, or its pieces.

        Raises:
            RowError: see `template.render`; or the row is too long and stays so.
        """
        if self._known(example.source):
            return (example,)
        tokens = render_row(self._template, look(example)).tokens
        if tokens <= self._max_tokens:
            self._remember(example.source)
            return (example,)
        if self._too_long == "split":
            pieces = self._split(example)
            if pieces:
                return pieces
        self._dropped[example.source] = tokens
        raise self._refusal(tokens)

    def _known(self, source: Source) -> bool:
        passed = self._whole.get(source.file, b"")
        return source.line < len(passed) and bool(passed[source.line])

    def _remember(self, source: Source) -> None:
        passed = self._whole.setdefault(source.file, bytearray())
        passed.extend(bytes(max(source.line + 1 - len(passed), 0)))
        passed[source.line] = 1

    def _split(self, row: Example) -> Sequence[Example]:
        if isinstance(row, Conversation):
            return self._pieces(row)
        return self._passages(row) if isinstance(row, Document) else ()

    def _passages(self, row: Document) -> list[Document]:
        texts = document.cut(self._template, row.text, self._max_tokens)
        return [
            replace(row, text=text, ends=row.ends and place == len(texts))
            for place, text in enumerate(texts, 1)
        ]

    def _pieces(self, row: Conversation) -> list[Conversation]:
        """The pieces, or none where one exchange does not fit alone."""
        head, exchanges = _exchanges(row.messages)

        def piece(context: int, start: int, end: int) -> Conversation:
            before = muted([m for exchange in exchanges[context:start] for m in exchange])
            new = [m for exchange in exchanges[start:end] for m in exchange]
            return replace(row, messages=(*head, *before, *new))

        pieces: list[Conversation] = []
        start = 0
        while start < len(exchanges):
            end = start
            while end < len(exchanges) and self._fits(piece(start, start, end + 1)):
                end += 1
            if end == start:
                return []
            context = start
            while context and self._fits(piece(context - 1, start, end)):
                context -= 1
            if any(trains(m) for exchange in exchanges[start:end] for m in exchange):
                pieces.append(piece(context, start, end))
            start = end
        for made in pieces:
            render(self._template, made)
        return pieces

    def _fits(self, row: Conversation) -> bool:
        # Turns without weight are rendered too: a chain that trains nothing would not be there.
        messages = tuple(replace(message, weight=None) for message in row.messages)
        chains = self._template.chains(replace(row, messages=messages))
        return max(len(chain.ids) for chain in chains) <= self._max_tokens

    def _refusal(self, tokens: int) -> RowError:
        expected = f"at most {self._max_tokens:,}"
        ways = {
            "stop": "Shorten it, or type --set data.too_long=split (cuts conversations between "
            "turns) or --set data.too_long=drop",
            "split": "It has no border between turns where its parts would fit: shorten it, or "
            "type --set data.too_long=drop",
            "drop": "Shorten it to keep it",
        }
        remedy = ways[self._too_long]
        if self._max_tokens < self._template.context:
            remedy += (
                f", or raise data.max_tokens (the model's context is {self._template.context:,})"
            )
        return RowError(f"{TOO_LONG}: {tokens:,} tokens", expected=expected, remedy=remedy + ".")


def refiner(template: ChatTemplate, max_tokens: int, too_long: TooLong) -> Refiner:
    """What `data.read` passes every row through as `refine`."""
    return Refiner(template, max_tokens, too_long)


def _exchanges(
    messages: Sequence[Message],
) -> tuple[tuple[Message, ...], list[tuple[Message, ...]]]:
    """The leading system messages, then runs of turns that each end with an assistant's.

    A call, its results and the answer stay together: a border is only before a user's turn.
    """
    first = next(i for i, message in enumerate(messages) if message.role != "system")
    rest = messages[first:]
    borders = [
        place
        for place, (one, next_one) in enumerate(pairwise(rest), 1)
        if one.role == "assistant" and next_one.role in ("user", "system")
    ]
    edges = [0, *borders, len(rest)]
    return tuple(messages[:first]), [tuple(rest[a:b]) for a, b in pairwise(edges)]


class Lengths:
    """Histograms of tokens, the ledger, and rows near or beyond the limit."""

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self.tokens: Counter[int] = Counter()
        self.answers: Counter[int] = Counter()
        self.trained = self.masked = 0
        self._near, self._beyond, self._split = Marked(), Marked(), Marked()
        self._pieces = self._run = 0
        self._of_text = False
        self._last = ""

    def see(self, row: Row, rendered: Rendered) -> None:
        """Count a row."""
        self._of_text = not row.conversations
        self.tokens[rendered.tokens] += 1
        self.answers.update(rendered.turns)
        self.trained += sum(rendered.turns)
        self.masked += rendered.masked
        self._follow(row.where)
        if rendered.tokens > self.max_tokens:
            self._beyond.add(row.where)
        elif rendered.tokens > NEAR_FULL * self.max_tokens and row.conversations:
            self._near.add(row.where)

    def _follow(self, where: str) -> None:
        """Pieces of one row follow each other and carry its place."""
        self._run = self._run + 1 if where == self._last else 1
        self._last = where
        if self._run == 2:
            self._split.add(where)
            self._pieces += 1
        self._pieces += self._run > 1

    def ledger(self, dropped_tokens: int) -> Ledger:
        """Where the tokens go."""
        return Ledger(self.trained, self.masked, dropped_tokens)

    def findings(self) -> Iterator[Finding]:
        """Rows beyond the limit (an error), split rows (a warning), rows near the limit (a note)."""
        limit = f"{self.max_tokens:,} tokens"
        yield from self._beyond.told(
            "tokens",
            "error",
            f"longer than {limit}",
            "Type --set data.too_long=split (cuts conversations between turns) or "
            "--set data.too_long=drop, or shorten them.",
        )
        yield from self._split.told(
            "tokens",
            "warning",
            f"longer than {limit} split into {self._pieces:,} pieces; "
            "later pieces do not see the whole beginning",
            "Nothing needs doing, parts of a text are text; a --model with a longer context keeps "
            "more of it together."
            if self._of_text
            else "Choose a --model with a longer context to keep them whole, or type "
            "--set data.too_long=drop.",
        )
        yield from self._near.told(
            "tokens",
            "note",
            f"of more than {NEAR_FULL:.0%} of {limit}: a longer question of the same kind would "
            "leave no room for its answer",
            "Choose a --model with a longer context, or shorten the prompts.",
        )
