"""Running text in passages: small enough to be split, compared and checked, and nothing is lost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TextIO

PASSAGE = 2000
"""Most characters of a passage: some 500 tokens of English, which any model's context holds."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A part of a text: the 1-based line that it begins in, and whether the text ends with it."""

    line: int
    text: str
    ends: bool


def passages(stream: TextIO, size: int = PASSAGE) -> Iterator[Passage]:
    """As many whole paragraphs as fit into `size` characters, one after another.

    A paragraph ends with its blank lines. One that is longer is cut after a line, and a line that
    is longer after a word. Joined, the passages are the text.
    """
    line, held = 1, ""
    for block in _blocks(stream, size):
        if held and len(held) + len(block) > size:
            yield Passage(line, held, ends=False)
            line, held = line + held.count("\n"), ""
        held += block
    yield Passage(line, held, ends=True)


def _blocks(stream: TextIO, size: int) -> Iterator[str]:
    """Paragraphs with the blank lines behind them, or parts of long ones."""
    block, blank = "", False
    for line in _lines(stream, size):
        begins = blank and not line.isspace()
        if block and (begins or len(block) + len(line) > size):
            yield block
            block = ""
        block += line
        blank = line.isspace()
    yield block


def _lines(stream: TextIO, size: int) -> Iterator[str]:
    """Lines, the long ones in parts of at most `size` characters, cut behind a space."""
    rest = ""
    while part := rest + stream.readline(size - len(rest)):
        space = part.rfind(" ") + 1
        end = space if space and len(part) == size and part[-1] != "\n" else len(part)
        rest = part[end:]
        yield part[:end]
