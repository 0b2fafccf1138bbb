"""How many rows there are, what was refused, and what looks broken in their texts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from tunesmith.checks.report import Finding, Severity, rows_said
from tunesmith.checks.row import Marked, Row, said
from tunesmith.checks.tokens import TOO_LONG, TooLong
from tunesmith.data.dataset import Dataset, Problem
from tunesmith.data.examples import Preference

TOO_FEW = 8
FEW = 50
MOST = 0.5


@dataclass(frozen=True, slots=True)
class _Oddity:
    pattern: re.Pattern[str]
    answers_only: bool
    what: str
    remedy: str
    style: bool = False
    """Found in most rows it is what the model is to write: a note, no warning."""


_ODDITIES = (
    _Oddity(
        re.compile(r"\ufffd|ï¿½|â€[\u0080-\u00bf™œž“”˜¦]|Ã[\u0080-\u00bf]|Â[\u00a0-\u00bf]|ðŸ"),
        False,
        "garbled characters (text decoded with the wrong encoding, such as â€™ for ’)",
        "Export the file again as UTF-8.",
    ),
    _Oddity(
        re.compile(
            r"\{\{ ?[^{}\n]{1,60}\}\}|\[(?:NAME|COMPANY|DATE|(?:[Yy]our|[Ii]nsert) [^\]\n]{1,40})\]"
        ),
        False,
        "unfilled placeholders such as {{name}}",
        "Fill them in, or take the rows out: a model learns to write the placeholder.",
        style=True,
    ),
    _Oddity(
        re.compile(r"<\|[a-z_]{2,30}\|>|\[/?INST\]|<(?:start|end)_of_turn>"),
        False,
        "chat markup of some model in their text",
        "Remove the markup: the chat template writes it.",
    ),
    _Oddity(
        re.compile(
            r"</?(?:p|br|div|span|a|ul|ol|li|b|i|strong|em|table|tr|td|th|h[1-6]|font|img)"
            r"(?: [^<>]*)?/?>|&(?:amp|lt|gt|nbsp|quot|apos|#\d{2,5});",
            re.IGNORECASE,
        ),
        True,
        "HTML in the answer",
        "Strip tags and entities, unless the model is to write HTML.",
        style=True,
    ),
    _Oddity(
        re.compile(
            r"\bas an ai(?: language)? (?:model|assistant)\b|\bI am an AI language", re.IGNORECASE
        ),
        True,
        "an answer of another assistant's making (“As an AI language model …”)",
        "Take the rows out, or write the answer that you want.",
    ),
)


class Form:
    """Counts rows, turns and texts that look broken."""

    def __init__(self) -> None:
        self.turns: Counter[int] = Counter()
        self._rows = 0
        self._odd = [Marked() for _ in _ODDITIES]
        self._undecided = Marked()

    def see(self, row: Row) -> None:
        """Count a row."""
        self._rows += 1
        if row.conversations:
            self.turns[len(row.conversations[0].messages)] += 1
        everything = "\n".join(row.texts())
        for oddity, marked in zip(_ODDITIES, self._odd, strict=True):
            if oddity.pattern.search(row.answer if oddity.answers_only else everything):
                marked.add(row.where)
        if isinstance(row.example, Preference) and row.example.chosen == row.example.rejected:
            self._undecided.add(row.where)

    def findings(self, dataset: Dataset, too_long: TooLong) -> Iterator[Finding]:
        """Refused rows by kind, too few rows, then what looks broken."""
        for problem in dataset.problems:
            yield _refused(problem, too_long)
        # One document may be a book: what is divided and trained are its passages.
        yield from _too_few(dataset.used if self.turns else len(dataset))
        yield from self._undecided.told(
            "form",
            "error",
            "whose two answers are the same",
            "Take them out: there is nothing to prefer.",
        )
        for oddity, marked in zip(_ODDITIES, self._odd, strict=True):
            style = oddity.style and marked.count > MOST * self._rows
            severity = "note" if style else "warning"
            yield from marked.told("form", severity, f"with {oddity.what}", oddity.remedy)


def _refused(problem: Problem, too_long: TooLong) -> Finding:
    long = problem.first.reason.startswith(TOO_LONG)
    return Finding(
        "tokens" if long else "form",
        "error" if long and too_long == "stop" else "warning",
        (said(problem.first.source),),
        f"{rows_said(problem.count)} refused: {problem.first.reason}",
        "Mend or remove them; each is listed with its reason in rejected.jsonl of the run.",
        problem.count,
    )


def _too_few(used: int) -> Iterator[Finding]:
    if used >= FEW:
        return
    severity: Severity = "error" if used < TOO_FEW else "warning"
    needed = TOO_FEW if used < TOO_FEW else FEW
    why = (
        "too few to train on and to test"
        if used < TOO_FEW
        else "the intervals of every measurement will be wide"
    )
    message = f"{rows_said(used)} to learn from: {why}"
    yield Finding("form", severity, (), message, f"Add rows: at least {needed}.", used)
