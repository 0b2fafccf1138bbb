"""JSON values one after another out of a stream of any length, broken ones included.

The array is never held: a window slides over the text, and each element is decoded where it
stands. A broken element ends where its brackets do, so that the ones behind it are still read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TextIO

from tunesmith.errors import RowError

_CHUNK = 1 << 20
_LONGEST_VALUE = 1 << 28
_SPACE = re.compile(r"[\s,\ufeff]*")
_BRACKETS = re.compile(r'"(?:[^"\\\n]|\\.)*"|[\[{\]}]')
_RESTART = re.compile(r"[,\]{]")
_HALF_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")
_DECODER = json.JSONDecoder()


@dataclass(frozen=True, slots=True)
class Row:
    """One raw row. `line` is 1-based; `value` is None while the text is not yet decoded."""

    line: int
    text: str = ""
    value: Any = None
    error: RowError | None = None

    def load(self) -> dict[str, Any]:
        """The row as an object.

        Raises:
            RowError: it is not valid JSON, not valid text, or not an object.
        """
        if self.error is not None:
            raise self.error
        value = decode(self.text, self.line) if self.value is None else self.value
        if not isinstance(value, dict):
            raise RowError(
                f"the row is {kind_of(value)}",
                expected='an object with named columns, as in {"prompt": "...", "completion": "..."}',
            )
        return value

    def shown(self) -> str:
        """The row as it was found, cut to 2,000 characters; bytes that are no text become `?`."""
        text = self.text or json.dumps(self.value, ensure_ascii=False, default=str)
        return text[:2000].encode("utf-8", "replace").decode("utf-8")


def kind_of(value: object) -> str:
    """What a JSON value is, in words; numbers and truth values are named."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)[:40]
    names = {str: "a text", list: "a list", dict: "an object"}
    return next((name for kind, name in names.items() if isinstance(value, kind)), "no JSON")


def check_text(text: str, line: int, column: int = 1) -> None:
    """Refuse text that holds bytes which were not valid in the file's encoding."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        line += text.count("\n", 0, error.start)
        column = (
            error.start
            - text.rfind("\n", 0, error.start)
            + (column - 1 if "\n" not in text[: error.start] else 0)
        )
        raise RowError(
            "the row is not valid UTF-8",
            expected="text in UTF-8 or UTF-16",
            remedy=f"Look at line {line}, column {column}; convert the file with "
            "`iconv -f WINDOWS-1252 -t UTF-8`, or delete the row.",
        ) from None


def decode(text: str, line: int) -> Any:
    """The one JSON value of a line.

    Raises:
        RowError: what is wrong, with line and column.
    """
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise _invalid(error.msg, line + error.lineno - 1, error.colno) from None
    except (ValueError, RecursionError) as error:
        raise _invalid(_too_much(error), line, 1) from None
    _check_halves(text, value)
    return value


def read_values(stream: TextIO, array: bool) -> Iterator[Row]:
    """The elements of a JSON array, or the values of a file one after another.

    `Row.line` counts rows, since an array may stand on a single line; the reason of a broken one
    names line and column.
    """
    window = _Window(stream)
    if array:
        window.advance(window.text.index("[") + 1)
    for number in range(1, 1 << 62):
        first = window.next_character()
        if array and first == "]":
            window.advance(window.at + 1)
            if window.next_character():
                yield Row(number, window.text[window.at :], error=window.unexpected("after the ]"))
            return
        if not first:
            if array:
                yield Row(number, "[", error=window.unexpected("at the end: the last ] is missing"))
            return
        yield window.take(number)


class _Window:
    """Text of a stream from the current place on, with the line and column of that place."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.text, self.at = "", 0
        self._line, self._column = 1, 1
        self.ended = False
        self.more()

    def more(self) -> bool:
        """Read on; what was passed is let go. False at the end of the stream."""
        chunk = self._stream.read(max(_CHUNK, len(self.text) - self.at))
        self.text, self.at = self.text[self.at :] + chunk, 0
        self.ended = not chunk
        return not self.ended

    def advance(self, to: int) -> None:
        self._line, self._column = self.place(to)
        self.at = to

    def place(self, at: int) -> tuple[int, int]:
        """Line and column of a position at or behind the current one."""
        newline = self.text.rfind("\n", self.at, at)
        if newline < 0:
            return self._line, self._column + at - self.at
        return self._line + self.text.count("\n", self.at, at), at - newline

    def next_character(self) -> str:
        """Pass space and commas; the character behind them, or "" at the end."""
        while True:
            match = _SPACE.match(self.text, self.at)
            self.advance(match.end() if match else self.at)
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""

    def unexpected(self, where: str) -> RowError:
        return _invalid(f"something unexpected {where}", self._line, self._column)

    def take(self, number: int) -> Row:
        """Decode the value that starts here, and pass it, whole or broken."""
        value, end, error = self._decode()
        if error is not None:
            end = self._end_of_broken()
        text = self.text[self.at : end]
        try:
            check_text(text, self._line, self._column)
            if error is None:
                _check_halves(text, value)
        except RowError as wrong:
            error = wrong
        row = Row(number, text, {} if error else value, error)
        self.advance(end)
        return row

    def _decode(self) -> tuple[Any, int, RowError | None]:
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.at)
            except json.JSONDecodeError as wrong:
                cut = wrong.msg.startswith("Unterminated") or wrong.pos >= len(self.text) - 16
                if cut and len(self.text) - self.at < _LONGEST_VALUE and self.more():
                    continue
                return None, 0, _invalid(wrong.msg, *self.place(wrong.pos))
            except (ValueError, RecursionError) as wrong:
                return None, 0, _invalid(_too_much(wrong), self._line, self._column)
            if end == len(self.text) and self.more():
                continue  # a number may go on in the next chunk
            return value, end, None

    def _end_of_broken(self) -> int:
        while True:
            end = self._balanced()
            if end or len(self.text) - self.at > _LONGEST_VALUE or not self.more():
                return end or len(self.text)

    def _balanced(self) -> int:
        if self.text[self.at] not in "[{":
            match = _RESTART.search(self.text, self.at + 1)
            return match.start() if match else 0
        depth = 0
        for match in _BRACKETS.finditer(self.text, self.at):
            depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(match[0], 0)
            if depth == 0:
                return match.end()
        return 0


def _invalid(what: str, line: int, column: int) -> RowError:
    return RowError(
        f"the row is not valid JSON ({what})",
        expected="JSON as the standard has it: double quotes, no comma before a closing bracket",
        remedy=f"Look at line {line}, column {column}.",
    )


def _too_much(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else "a number too long"


def _check_halves(text: str, value: Any) -> None:
    if not _HALF_CHARACTER.search(text):
        return
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise RowError(
            r"the row holds half a character (a lone \ud800 to \udfff)",
            expected="both halves of the pair",
            remedy="Write the character itself, or delete it.",
        ) from None
