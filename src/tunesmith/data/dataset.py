"""Examples out of files: read once to check and fingerprint them, read anew at every pass."""

from __future__ import annotations

import hashlib
import random
import re
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tunesmith.data import files as _files
from tunesmith.data import fingerprint as _fingerprint
from tunesmith.data.examples import Example, Rejected, Source
from tunesmith.data.formats import parse_example, with_answer
from tunesmith.data.layout import KNOWN_COLUMNS, PASSAGES, Layout, recognise
from tunesmith.data.values import Row
from tunesmith.errors import DataError, RowError, UsageError
from tunesmith.sections import Format

Refine = Callable[[Example], Sequence[Example]]
_SAMPLE = 200
_BATCH = 1024
_KINDS = 200
_NUMBER = re.compile(r"(?<![\w-])\d[\d.,]*")
_LEFT_OUT, _USED, _BAD, _COPY = range(4)


@dataclass(frozen=True, slots=True)
class Problem:
    """One kind of reason why rows are refused; `kind` has N for the numbers in it."""

    kind: str
    count: int
    first: Rejected


@dataclass(frozen=True, slots=True)
class _Reader:
    files: tuple[_files.DataFile, ...]
    layouts: tuple[Layout | None, ...]
    refine: Refine | None
    answers: Mapping[str, str]

    def rows(self) -> Iterator[tuple[Source, Row, Layout | None]]:
        for file, layout in zip(self.files, self.layouts, strict=True):
            for row in file.rows():
                yield Source(file.name, row.line), row, layout

    def parse(self, source: Source, row: Row, layout: Layout | None) -> Example:
        return parse_example(with_answer(row.load(), self.answers), layout, source)

    def refined(self, example: Example) -> Sequence[Example]:
        return (example,) if self.refine is None else self.refine(example)


class Dataset:
    """Examples that can be iterated any number of times; rows are read anew, never held.

    Attributes:
        files: the files' names as given.
        layouts: how the rows of each file are laid out; None where they fit no known format.
        notes: what is to be told about each file: its format, unused columns, odd encodings.
        rows: source rows read, after `limit`; always `used + bad + duplicates`.
        used, bad, duplicates: source rows that give examples, that are refused, and that were
            removed as exact copies.
        problems: the kinds of refusal, the most frequent first.
        fingerprint: sha256 over the examples in order; names of files do not enter.
        groups: for each example the id of its group of near-duplicates and of pieces of one row,
            int64.
        places: for each passage of a running text how far into its file it ends, above 0 to 1; nan for
            other examples, float64.
        digests: for each example 128 bits of its content, shape (examples, 2), uint64.
        signatures: for each example its MinHash, shape (examples, 32), uint32.
        signer: what made the signatures, for making comparable ones.
    """

    def __init__(self, reader: _Reader, notes: tuple[str, ...], read: _Pass) -> None:
        self._reader, self._status = reader, read.status
        self._copies, self._originals = read.copies, read.originals
        self.files, self.layouts = tuple(file.name for file in reader.files), reader.layouts
        self.notes, self.problems, self.signer = notes, read.problems, read.signer
        self.used, self.bad, self.duplicates = (
            int((read.status == status).sum()) for status in (_USED, _BAD, _COPY)
        )
        self.rows = self.used + self.bad + self.duplicates
        self.digests, self.signatures, prompts = read.digests, read.signatures, read.prompts
        self.fingerprint = hashlib.sha256(self.digests.tobytes()).hexdigest()
        # In the order of their content, so that groups do not depend on the order of rows.
        order = np.lexsort((self.digests[:, 1], self.digests[:, 0]))
        self.groups: NDArray[np.int64] = np.empty(len(order), np.int64)
        self.groups[order] = _fingerprint.group(
            self.signatures[order], prompts[order], read.rows[order]
        )
        self.places = read.places

    def __len__(self) -> int:
        return len(self.digests)

    def __iter__(self) -> Iterator[Example]:
        for _, source, row, layout in self._with(_USED):
            yield from self._reader.refined(self._reader.parse(source, row, layout))

    @property
    def nbytes(self) -> int:
        """Bytes held for the rows."""
        held = (self._status, self._copies, self._originals, self.places)
        return sum(part.nbytes for part in (*held, self.digests, self.signatures, self.groups))

    def rejected(self) -> Iterator[Rejected]:
        """The refused rows, read anew."""
        for _, source, row, layout in self._with(_BAD):
            try:
                self._reader.refined(self._reader.parse(source, row, layout))
            except RowError as error:
                yield Rejected(source, str(error), row.shown())

    def duplicate_rows(self) -> Iterator[Rejected]:
        """The rows that were removed as exact copies, each with the row that it copies."""
        original = dict(zip(self._copies.tolist(), self._originals.tolist(), strict=True))
        wanted = set(original.values())
        sources: dict[int, Source] = {}
        for index, source, row, _ in self._with(_USED, _COPY):
            if index in wanted:
                sources[index] = source
            elif index in original:
                first = sources[original[index]]
                yield Rejected(source, f"exact copy of {first.file}:{first.line}", row.shown())

    def originals(self) -> Iterator[tuple[Source, Mapping[str, object]]]:
        """The used rows as they were found, read anew."""
        for _, source, row, _ in self._with(_USED):
            yield source, row.load()

    def reject(self, reasons: Mapping[Source, str]) -> Iterator[Rejected]:
        """The used rows of these sources, with the reason why each is not used after all."""
        for _, source, row, _ in self._with(_USED):
            if source in reasons:
                yield Rejected(source, reasons[source], row.shown())

    def _with(self, *statuses: int) -> Iterator[tuple[int, Source, Row, Layout | None]]:
        for index, (source, row, layout) in enumerate(self._reader.rows()):
            if self._status[index] in statuses:
                yield index, source, row, layout


def read(
    files: Sequence[str],
    *,
    format: Format = "auto",
    columns: Mapping[str, str] = {},
    limit: int | None = None,
    seed: int = 0,
    keep_duplicates: bool = False,
    refine: Refine | None = None,
    progress: Callable[[int], None] | None = None,
    answers: Mapping[str, str] = {},
) -> Dataset:
    """Read files once, decide about every row, and remember 300 bytes a row at most.

    Args:
        files: paths; `-` is standard input.
        format: how rows are laid out; `auto` recognises it file by file.
        columns: {standard name: name in the file}.
        limit: a random sample of this many rows, in their order.
        seed: of that sample.
        keep_duplicates: whether exact copies stay.
        refine: looks at each example and gives it, several pieces, or raises RowError.
        progress: called with the number of rows read so far.
        answers: {id of a document: answer} for questions that name a document and have no answer.

    Raises:
        DataError: a file is missing, empty, unreadable or not a container that rows come in.
        UsageError: a format or column that the files do not have.
    """
    spool = Path(tempfile.gettempdir()) / f"tunesmith-{random.SystemRandom().getrandbits(64):x}"
    try:
        known = KNOWN_COLUMNS | {name.strip().casefold() for name in columns.values()}
        text = format == "text"
        opened = tuple(_files.open_file(name, spool, known, text=text) for name in files)
        samples = [_sample(file) for file in opened]
        layouts, notes = _layouts(opened, samples, format, columns, answers)
        reader = _Reader(opened, layouts, refine, answers)
        picked = _picked(reader, limit, seed)
        signer = _fingerprint.Signer(_sample_examples(reader, samples))
        read = _Pass(reader, signer)
        read.run(picked, progress)
        read.finish(keep_duplicates)
        dataset = Dataset(reader, notes, read)
    except BaseException:
        _files.drop(spool)
        raise
    if spool.exists():
        weakref.finalize(dataset, _files.drop, spool)
    return dataset


class _Pass:
    """The one pass that decides about every row, and what it leaves behind."""

    def __init__(self, reader: _Reader, signer: _fingerprint.Signer) -> None:
        self._reader, self.signer = reader, signer
        self._kinds: dict[str, tuple[int, Rejected]] = {}
        self._status, self._row_digests = bytearray(), bytearray()
        self._digests, self._prompts, self._signed = bytearray(), bytearray(), bytearray()
        self._pieces, self._texts = bytearray(), bytearray()
        self._files: dict[str, int] = {}
        self._waiting: list[Example] = []

    def run(self, picked: set[int] | None, progress: Callable[[int], None] | None) -> None:
        done = 0
        for index, (source, row, layout) in enumerate(self._reader.rows()):
            if picked is not None and index not in picked:
                self._status.append(_LEFT_OUT)
                continue
            try:
                example = self._reader.parse(source, row, layout)
                pieces = self._reader.refined(example)
            except RowError as error:
                self._status.append(_BAD)
                self._refuse(error, source, row)
            else:
                self._status.append(_USED)
                self._take(example, pieces, running=layout is PASSAGES)
            done += 1
            if progress is not None and done % _BATCH == 0:
                progress(done)
        self._sign()
        if progress is not None:
            progress(done)

    def finish(self, keep_duplicates: bool) -> None:
        """Drop exact copies, and turn what was gathered into arrays."""
        self.status = np.frombuffer(self._status, np.uint8).copy()
        rows = np.flatnonzero(self.status == _USED)
        digests = np.frombuffer(self._row_digests, np.uint64).reshape(-1, 2)
        order = np.lexsort((digests[:, 1], digests[:, 0]))
        ordered = digests[order]
        again = np.concatenate([[False], (ordered[1:] == ordered[:-1]).all(axis=1)])
        starts = np.maximum.accumulate(np.where(again, 0, np.arange(len(order))))
        if keep_duplicates or not len(rows):
            again = np.zeros(len(rows), bool)
        self.copies, self.originals = rows[order[again]], rows[order[starts[again]]]
        self.status[self.copies] = _COPY
        pieces = np.frombuffer(self._pieces, np.uint32)
        kept = np.repeat(self.status[rows] == _USED, pieces)
        self.rows = np.repeat(rows, pieces)[kept]
        self.places = _places(np.repeat(np.frombuffer(self._texts, np.uint32), pieces)[kept])
        self.digests = np.frombuffer(self._digests, np.uint64).reshape(-1, 2)[kept]
        self.prompts = np.frombuffer(self._prompts, np.uint64)[kept]
        signed = np.frombuffer(self._signed, np.uint32)
        self.signatures = signed.reshape(-1, _fingerprint.PERMUTATIONS)[kept]

    @property
    def problems(self) -> tuple[Problem, ...]:
        found = [Problem(kind, count, first) for kind, (count, first) in self._kinds.items()]
        return tuple(sorted(found, key=lambda problem: -problem.count))

    def _take(self, example: Example, pieces: Sequence[Example], *, running: bool) -> None:
        file = self._files.setdefault(example.source.file, len(self._files) + 1)
        self._texts += (file if running else 0).to_bytes(4, "little")
        digest = _fingerprint.digest(example)
        self._row_digests += digest
        self._pieces += len(pieces).to_bytes(4, "little")
        for piece in pieces:
            self._digests += digest if piece is example else _fingerprint.digest(piece)
            key = _fingerprint.prompt_key(piece, normal=True)
            self._prompts += key.to_bytes(8, "little")
            self._waiting.append(piece)
        if len(self._waiting) >= _BATCH:
            self._sign()

    def _sign(self) -> None:
        self._signed += self.signer.sign(self._waiting).tobytes()
        self._waiting.clear()

    def _refuse(self, error: RowError, source: Source, row: Row) -> None:
        kind = _NUMBER.sub("N", error.found)
        if kind not in self._kinds and len(self._kinds) >= _KINDS:
            kind = "another reason"
        count, first = self._kinds.get(kind, (0, None))
        first = first or Rejected(source, str(error), row.shown())
        self._kinds[kind] = (count + 1, first)


def _places(texts: NDArray[np.uint32]) -> NDArray[np.float64]:
    """How far into its text each passage ends; `texts` numbers them, 0 for none."""
    places = np.full(len(texts), np.nan)
    for text in np.unique(texts[texts > 0]):
        where = np.flatnonzero(texts == text)
        places[where] = np.arange(1, len(where) + 1) / len(where)
    return places


def _sample(file: _files.DataFile) -> list[Row]:
    with closing(file.rows()) as rows:
        return list(islice(rows, _SAMPLE))


def _layouts(
    files: Sequence[_files.DataFile],
    samples: Sequence[Sequence[Row]],
    format: Format,
    columns: Mapping[str, str],
    answers: Mapping[str, str],
) -> tuple[tuple[Layout | None, ...], tuple[str, ...]]:
    layouts: list[Layout | None] = []
    notes: list[str] = []
    there: dict[str, None] = {}
    for file, sample in zip(files, samples, strict=True):
        if not sample:
            raise DataError(f"{file.name} has no rows", expected="at least one row")
        loaded = [with_answer(row.load(), answers) for row in sample if _loads(row)]
        there.update((key, None) for row in loaded for key in row)
        try:
            running = file.container == "text"
            layout = PASSAGES if running else recognise(loaded, format, columns)
        except UsageError as error:
            raise UsageError(
                f"{file.name}: {error.found}", expected=error.expected, remedy=error.remedy
            ) from None
        layouts.append(layout)
        told = layout.notes if layout else ("its columns fit no known format",)
        notes.extend(f"{file.name}: {note}" for note in (*file.notes, *told))
    lost = [(name, column) for name, column in columns.items() if column not in there]
    if lost and there:
        raise UsageError(
            f"--map {lost[0][0]}={lost[0][1]}: there is no column `{lost[0][1]}`",
            expected="one of " + ", ".join(f"`{key}`" for key in there),
        )
    return tuple(layouts), tuple(notes)


def _loads(row: Row) -> bool:
    try:
        row.load()
    except RowError:
        return False
    return True


def _sample_examples(reader: _Reader, samples: Sequence[Sequence[Row]]) -> Iterator[Example]:
    for file, sample, layout in zip(reader.files, samples, reader.layouts, strict=True):
        for row in sample:
            try:
                yield reader.parse(Source(file.name, row.line), row, layout)
            except RowError:
                continue


def _picked(reader: _Reader, limit: int | None, seed: int) -> set[int] | None:
    """Indices of a seeded sample of the rows; None for all of them."""
    if limit is None:
        return None
    count = sum(1 for _ in reader.rows())
    return set(random.Random(seed).sample(range(count), limit)) if count > limit else None
