"""Which example becomes which chains, for each method."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from tunesmith.data.examples import Conversation, Document, Example
from tunesmith.errors import DataError
from tunesmith.models import document
from tunesmith.models.template import Chain, ChatTemplate


def sft(examples: Iterable[Example], template: ChatTemplate) -> list[tuple[Chain, ...]]:
    """A demonstration is one chain (several where history is not a prefix of what follows).

    Raises:
        DataError: a row is no demonstration, or nothing (or everything) of it would be trained.
    """
    rows: list[tuple[Chain, ...]] = []
    for example in examples:
        where = f"{example.source.file}:{example.source.line}"
        if not isinstance(example, Conversation):
            raise DataError(
                f"{where} is a {type(example).__name__}",
                expected="a demonstration, which supervised fine-tuning learns from",
            )
        chains = template.chains(example)
        if not chains or any(chain.trained_count in (0, len(chain.ids)) for chain in chains):
            raise DataError(
                f"{where} trains none or all of its tokens",
                expected="the assistant's tokens and nothing else",
            )
        rows.append(chains)
    return rows


def cpt(examples: Iterable[Example], template: ChatTemplate) -> list[tuple[Chain, ...]]:
    """A document is one chain, trained from its second token on.

    Raises:
        DataError: a row is no document, or has no second token.
    """
    rows: list[tuple[Chain, ...]] = []
    for example in examples:
        where = f"{example.source.file}:{example.source.line}"
        if not isinstance(example, Document):
            raise DataError(
                f"{where} is a {type(example).__name__}",
                expected="a document, which continued pre-training learns from",
            )
        chain = document.chain(template, example.text, ends=example.ends)
        if not chain.trained_count:
            raise DataError(f"{where} trains none of its tokens", expected="two tokens or more")
        rows.append((chain,))
    return rows


METHODS: Mapping[str, Callable[[Iterable[Example], ChatTemplate], list[tuple[Chain, ...]]]] = {
    "sft": sft,
    "cpt": cpt,
}
"""By the names that the recipe has for them. Both take the mean loss of all trained tokens."""
