"""Does the chat template render every row, and train the answers, all of them and only them?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, pairwise

from tunesmith.checks.report import Finding
from tunesmith.checks.row import Marked, Row, trains
from tunesmith.data.examples import Conversation, Document
from tunesmith.errors import RowError
from tunesmith.models import document
from tunesmith.models.template import Chain, ChatTemplate


@dataclass(frozen=True, slots=True)
class Rendered:
    """What the template made of a row, in tokens.

    Args:
        tokens: the longest chain.
        turns: tokens of each trained turn, the end-of-turn token included; of a document all that
            are trained.
        masked: tokens without loss, over all chains.
    """

    tokens: int
    turns: tuple[int, ...]
    masked: int


def render(template: ChatTemplate, conversation: Conversation) -> Rendered:
    """Render a row and prove its loss mask.

    Raises:
        RowError: the template fails on the row, no token or every token would be trained, an
            assistant turn is left out, or a trained turn does not end with an end-of-turn token.
    """
    chains = template.chains(conversation)
    turns: list[int] = []
    for chain in chains:
        turns.extend(_trained_runs(chain, template.end_of_turn))
    total = sum(len(chain.ids) for chain in chains)
    if not turns:
        raise RowError(
            "no token of the row would be trained",
            expected="an assistant turn whose weight is not 0",
            remedy="Take the weight away, or the row.",
        )
    if sum(turns) == total:
        raise RowError(
            f"every one of its {total:,} tokens would be trained",
            expected="the assistant's tokens and nothing else",
            remedy="Add the user's turn; if it is there, this model's chat template is at fault.",
        )
    _all_turns(conversation, len(turns))
    return Rendered(max(len(chain.ids) for chain in chains), tuple(turns), total - sum(turns))


def render_row(template: ChatTemplate, row: Row) -> Rendered:
    """Render a row: a conversation, the two of a pair added up, or a document.

    Raises:
        RowError: see `render`; or a document has but one token, which nothing predicts.
    """
    if isinstance(row.example, Document):
        chain = document.chain(template, row.example.text, ends=row.example.ends)
        if not chain.trained_count:
            raise RowError(
                "no token of the row would be trained",
                expected="two tokens or more",
                remedy="Delete the row.",
            )
        count = len(chain.ids)
        return Rendered(count, (chain.trained_count,), count - chain.trained_count)
    parts = [render(template, conversation) for conversation in row.conversations]
    return Rendered(
        max(part.tokens for part in parts),
        tuple(turn for part in parts for turn in part.turns),
        sum(part.masked for part in parts),
    )


def _trained_runs(chain: Chain, end_of_turn: frozenset[int]) -> Iterator[int]:
    place = 0
    for trained, run in groupby(chain.trained):
        length = sum(1 for _ in run)
        place += length
        if not trained:
            continue
        if chain.ids[place - 1] not in end_of_turn:
            raise RowError(
                f"a trained turn ends with token {chain.ids[place - 1]}, so the model would "
                "never learn to stop",
                expected=f"an end-of-turn token ({', '.join(map(str, sorted(end_of_turn)))})",
                remedy="Choose another --model: this one's chat template does not close its turns.",
            )
        yield length


def _all_turns(conversation: Conversation, rendered: int) -> None:
    roles = [message.role for message in conversation.messages]
    # Two answers in a row may render without a header between them, as one run of tokens.
    if any(pair == ("assistant", "assistant") for pair in pairwise(roles)):
        return
    asked = sum(trains(message) for message in conversation.messages)
    if rendered != asked:
        raise RowError(
            f"{rendered} of its assistant turns would be trained",
            expected=f"{asked}, the number of turns whose weight is not 0",
            remedy="Make one row of each turn; this model's chat template does not show them all.",
        )


class TemplateCheck:
    """Renders rows one by one and remembers what went wrong."""

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template
        self._failed: dict[str, tuple[RowError, Marked]] = {}
        self._tools, self._unweighted = Marked(), Marked()
        self._read_as_text = True

    def see(self, row: Row) -> Rendered | None:
        """The row's tokens (the two of a pair added up), or None where it does not render."""
        self._read_as_text &= isinstance(row.example, Document)
        if any(turns.tools for turns in row.conversations) and not self._template.supports_tools:
            self._tools.add(row.where)
        if isinstance(row.example, Conversation) and any(
            message.role == "assistant" and not trains(message) for message in row.example.messages
        ):
            self._unweighted.add(row.where)
        try:
            return render_row(self._template, row)
        except RowError as error:
            # The problem's words without its numbers, so that a fault of every row is one finding.
            kind = "".join(c for c in error.found if not c.isdigit())[:60]
            self._failed.setdefault(kind, (error, Marked()))[1].add(row.where)
            return None

    def findings(self) -> Iterator[Finding]:
        """Errors for rows that do not render or train wrongly; notes on what the template lacks."""
        for error, marked in self._failed.values():
            expected = f"; expected {error.expected}" if error.expected else ""
            remedy = error.remedy or "Mend the rows or take them out."
            yield from marked.told(
                "template", "error", f"cannot be trained: {error.found}{expected}", remedy
            )
        if self._template.fallback and not self._read_as_text:
            message = (
                "the model ships no chat template, so tunesmith's plain one is used: "
                "roles in brackets, the end token after each answer"
            )
            remedy = "Choose an instruction-tuned --model if it should keep its own format."
            yield Finding("template", "note", (), message, remedy, 0)
        yield from self._tools.told(
            "template",
            "note",
            "with tools: the chat template has no place for them, so they are written as text "
            "into the system message",
            "Nothing needs doing, serving writes them the same way; a --model whose template "
            "knows tools writes them as it learned them.",
        )
        yield from self._unweighted.told(
            "template",
            "note",
            "with assistant turns of weight 0: they are read as context and not trained",
            "Remove `weight` from turns that should be learned.",
        )
