"""From token ids to text that may be sent: whole characters only, and never a stop string."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

REPLACEMENT = "\ufffd"
"""What a decoder writes for bytes that are not a character, or not one yet."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What one more token adds to an answer: text, its tokens' log-probabilities, the end.

    `offsets` says for each of `entries` how many characters of the answer were before it.
    """

    text: str
    entries: tuple[dict[str, Any], ...] = ()
    finish: Literal["stop", "length"] | None = None
    offsets: tuple[int, ...] = ()


class Detokenizer:
    """Decodes ids as they come; a character whose bytes are not all there yet waits.

    The pieces joined are the decoded whole: each window starts where the last piece began, so a
    decoder that looks at the token before (a leading space) sees it.

    Args:
        before: tokens that the text goes on from.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], before: Sequence[int] = ()) -> None:
        self._decode = decode
        self._ids = list(before)
        self._sent = len(self._ids)

    def feed(self, token: int) -> str:
        """The text that `token` completes; empty while a character is open."""
        self._ids.append(token)
        fresh = self._fresh()
        if not fresh or fresh.endswith(REPLACEMENT):
            return ""
        self._ids = self._ids[self._sent :]
        self._sent = len(self._ids)
        return fresh

    def flush(self, *, cut: bool) -> str:
        """What still waits. `cut`: the answer was cut off, so an open character is left out."""
        fresh = self._fresh()
        self._ids, self._sent = [], 0
        return fresh.rstrip(REPLACEMENT) if cut else fresh

    def _fresh(self) -> str:
        return self._decode(self._ids)[len(self._decode(self._ids[: self._sent])) :]


class StopScanner:
    """Lets text through up to the first stop string, holding back what may become one.

    Of several stop strings the one that is complete first ends the text, so the result does not
    depend on how the text was cut into pieces.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.stopped = False

    def feed(self, text: str) -> str:
        """The part of all text so far that is new and safe to send."""
        text = self._held + text
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)[1]]
        keep = self._open(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What was held back, once no more text comes."""
        held, self._held = self._held, ""
        return held

    def _open(self, text: str) -> int:
        """Length of the longest end of `text` that a stop string starts with."""
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stops):
                return length
        return 0


class AnswerText:
    """One answer while it is sampled: tokens in, sendable pieces out."""

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        stops: Sequence[str],
        before: Sequence[int] = (),
    ) -> None:
        self._detokenizer = Detokenizer(decode, before)
        self._scanner = StopScanner(stops)
        self._waiting: deque[tuple[int, dict[str, Any]]] = deque()
        self._decoded = self._sent = 0
        self.tokens = 0

    def feed(
        self, token: int, entry: dict[str, Any] | None, finish: Literal["stop", "length"] | None
    ) -> Piece:
        """Take one token. `finish` "stop" means that it ends the turn and is no text."""
        self.tokens += 1
        text = ""
        if finish != "stop":
            if entry is not None:
                self._waiting.append((self._decoded, entry))
            text = self._detokenizer.feed(token)
        if finish:
            text += self._detokenizer.flush(cut=finish == "length")
        self._decoded += len(text)
        sendable = self._scanner.feed(text)
        if self._scanner.stopped:
            finish = "stop"
        elif finish:
            sendable += self._scanner.flush()
        self._sent += len(sendable)
        told = self._told(last=bool(finish))
        entries = tuple(entry for _, entry in told)
        return Piece(sendable, entries, finish, tuple(place for place, _ in told))

    def _told(self, *, last: bool) -> list[tuple[int, dict[str, Any]]]:
        """Log-probabilities of the tokens whose text was sent, in order, and where that begins."""
        everything = last and not self._scanner.stopped
        out: list[tuple[int, dict[str, Any]]] = []
        while self._waiting and (everything or self._waiting[0][0] < self._sent):
            out.append(self._waiting.popleft())
        return out


def said(
    decode: Callable[[Sequence[int]], str],
    ids: Sequence[int],
    entries: Sequence[dict[str, Any] | None],
) -> Piece:
    """A text that is there already, as one piece."""
    answer = AnswerText(decode, ())
    pieces = [
        answer.feed(token, entry, "length" if place == len(ids) else None)
        for place, (token, entry) in enumerate(zip(ids, entries, strict=True), 1)
    ]
    return Piece(
        "".join(piece.text for piece in pieces),
        tuple(entry for piece in pieces for entry in piece.entries),
        offsets=tuple(place for piece in pieces for place in piece.offsets),
    )
