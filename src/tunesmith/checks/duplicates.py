"""Copies, near copies, and one prompt with several answers, from 32 bytes a row."""

from __future__ import annotations

from array import array
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from tunesmith.checks.report import Finding, rows_said
from tunesmith.checks.row import NAMED_ROWS, Row, digest, prompt_key
from tunesmith.data.examples import Conversation

ENOUGH_ROWS = 20
MAJORITY = 0.5


class Fingerprints:
    """64-bit digests of each row's prompt, answer and system message, in the order of the data."""

    def __init__(self) -> None:
        self._files: dict[str, int] = {}
        self._file, self._line = array("I"), array("I")
        self._prompt, self._answer, self._system = array("Q"), array("Q"), array("Q")
        self._demonstrations = True

    def see(self, row: Row) -> None:
        """Remember a row."""
        source = row.example.source
        self._file.append(self._files.setdefault(source.file, len(self._files)))
        self._line.append(source.line)
        self._prompt.append(prompt_key(row.example))
        self._answer.append(digest(row.answer.strip()))
        system = "\n".join(m.content or "" for m in row.prompt if m.role == "system")
        self._system.append(digest(system) if system else 0)
        self._demonstrations &= isinstance(row.example, Conversation)

    def _named(self, places: NDArray[np.intp]) -> tuple[str, ...]:
        files = list(self._files)
        return tuple(
            f"{files[self._file[place]]}:{self._line[place]}"
            for place in places[:NAMED_ROWS].tolist()
        )

    def findings(
        self, groups: NDArray[np.int64], copies: int, *, labels: bool
    ) -> Iterator[Finding]:
        """What repeats.

        Args:
            groups: the group of near-duplicates of each row, in the order the rows were seen.
            copies: exact copies that were removed on reading.
            labels: the answers are labels, so that one answer for many rows is expected.
        """
        if copies:
            message = f"{rows_said(copies)} removed as exact copies of an earlier one"
            remedy = "Nothing needs doing; --set data.duplicates=keep keeps them."
            yield Finding("duplicates", "note", (), message, remedy, copies)
        yield from self._alike(groups)
        if self._demonstrations:
            yield from self._contradicting()
            yield from self._systems()
        if not labels:
            yield from self._one_answer()

    def _alike(self, groups: NDArray[np.int64]) -> Iterator[Finding]:
        where = np.arange(len(groups))
        seen = len(groups) == len(self)
        if seen:
            # Pieces of one row are in one group, and no copies of each other.
            rows_of = np.stack([groups, np.array(self._file), np.array(self._line)])
            where = np.sort(np.unique(rows_of, axis=1, return_index=True)[1])
            groups = groups[where]
        _, member, sizes = np.unique(groups, return_inverse=True, return_counts=True)
        alike = sizes[sizes > 1]
        rows = int(alike.sum())
        if not rows:
            return
        named = self._named(where[sizes[member] > 1]) if seen else ()
        message = (
            f"{rows_said(rows)} in groups of near duplicates: "
            f"{len(alike):,} groups, the largest of {int(alike.max()):,}; a group stays on one side of the split"
        )
        remedy = (
            "Keep them if they are real variations; otherwise remove all but one of each group."
        )
        severity = "warning" if rows > MAJORITY * len(groups) else "note"
        yield Finding("duplicates", severity, named, message, remedy, rows)

    def _contradicting(self) -> Iterator[Finding]:
        prompt, answer = _numbers(self._prompt), _numbers(self._answer)
        order = np.lexsort((answer, prompt))
        new_prompt = np.diff(prompt[order], prepend=~prompt[order[:1]]) != 0
        new_pair = new_prompt | (np.diff(answer[order], prepend=answer[order[:1]]) != 0)
        member = np.cumsum(new_prompt) - 1
        answers = np.bincount(member[new_pair])
        places = np.sort(order[answers[member] > 1])
        if not len(places):
            return
        several = int((answers > 1).sum())
        message = (
            f"{rows_said(len(places))} share {several:,} prompts that have different answers; "
            "a model can only learn their mixture"
        )
        remedy = (
            "Keep one answer a prompt, or put into the prompt what decides between them; "
            "where every one of the answers is right, nothing needs doing."
        )
        yield Finding("duplicates", "warning", self._named(places), message, remedy, len(places))

    def _systems(self) -> Iterator[Finding]:
        _, first, counts = np.unique(_numbers(self._system), return_index=True, return_counts=True)
        if len(counts) < 2:
            return
        share = counts.max() / len(self)
        message = (
            f"{len(counts):,} different system messages (none counts as one); "
            f"the most frequent stands in {share:.0%} of the rows"
        )
        remedy = "Serve with the system message that was trained; one for all rows learns quickest."
        yield Finding("form", "note", self._named(np.sort(first)), message, remedy, len(counts))

    def _one_answer(self) -> Iterator[Finding]:
        if len(self) < ENOUGH_ROWS:
            return
        answers = _numbers(self._answer)
        values, counts = np.unique(answers, return_counts=True)
        most = int(counts.max())
        if most <= MAJORITY * len(self):
            return
        named = self._named(np.flatnonzero(answers == values[counts.argmax()]))
        message = f"{rows_said(most)} ({most / len(self):.0%}) have one and the same answer"
        remedy = "Look at these rows: if the answer is a stock phrase, remove most of them."
        yield Finding("form", "warning", named, message, remedy, most)

    def __len__(self) -> int:
        return len(self._prompt)


def _numbers(values: array[int]) -> NDArray[np.uint64]:
    return np.frombuffer(values, dtype=np.uint64)
