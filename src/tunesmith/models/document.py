"""Text as pre-training reads it: tokens without a template, each learned from those before it."""

from __future__ import annotations

import math
import re
from bisect import bisect_right

from tunesmith.models.template import Chain, ChatTemplate

_BORDERS = tuple(map(re.compile, (r"\n\s*\n", r"\n", r"[.!?]\s+", r"\s+")))
"""Where a text is cut, the best first: behind a paragraph, a line, a sentence, a word."""
_LEAST = 0.5
"""A border in the first half of what fits is not worth its many short pieces."""


def chain(template: ChatTemplate, text: str, *, ends: bool) -> Chain:
    """Every token is trained but the first, which nothing predicts.

    The first is the tokenizer's bos where it writes one, so that all of the text is trained. With
    `ends` the token that ends a text follows.
    """
    ids = (*_bos(template), *template.encode(text), *([end_of_text(template)] if ends else ()))
    return Chain(ids, tuple(place > 0 for place in range(len(ids))))


def end_of_text(template: ChatTemplate) -> int:
    """The token that ends a text in pre-training.

    Of the tokens that the model stops at it has the lowest id: those that end a turn of a chat were
    added to the vocabulary behind it.
    """
    return min(template.end_of_turn)


def predicted_bytes(template: ChatTemplate, text: str) -> int:
    """Bytes of the text's predicted tokens in UTF-8: all, or without bos all but the first's."""
    if _bos(template):
        return len(text.encode())
    offsets = template.tokenizer.encode(text, add_special_tokens=False).offsets
    return len(text[offsets[0][1] :].encode()) if offsets else 0


def cut(template: ChatTemplate, text: str, max_tokens: int) -> list[str]:
    """The text in pieces of like length whose chains have at most `max_tokens` tokens.

    Joined they are the text. None where not even a character fits.
    """
    room = max_tokens - len(_bos(template)) - 1
    offsets = template.tokenizer.encode(text, add_special_tokens=False).offsets
    starts = [start for start, _ in offsets]
    pieces: list[str] = []
    at = 0
    while at < len(text):
        first = bisect_right(starts, at) - 1
        left = len(starts) - first
        # Of like length, so that no crumb is left at the end.
        size = math.ceil(left / math.ceil(left / room)) if room > 0 else 0
        end = at
        while size > 0:
            last = first + size
            end = len(text) if last >= len(starts) else _border(text, at, starts[last])
            # A text that is cut can have other tokens near the cut than it had as a whole.
            if template.tokens(text[at:end]) <= room:
                break
            size -= max(1, size // 16)
        if size <= 0 or end <= at:
            return []
        pieces.append(text[at:end])
        at = end
    return pieces


def _border(text: str, start: int, end: int) -> int:
    """The last good place to cut in the second half of text[start:end], or its end."""
    least = start + int((end - start) * _LEAST)
    for border in _BORDERS:
        found = [match.end() for match in border.finditer(text, least, end)]
        if found:
            return found[-1]
    return end


def _bos(template: ChatTemplate) -> tuple[int, ...]:
    """What the tokenizer itself writes before a text; what it writes behind one is left out."""
    special = template.tokenizer.encode("").ids
    return tuple(special[:1]) if template.tokenizer.encode("a").ids[:1] == special[:1] else ()
