"""Tables as text: which delimiter and quote, whether the first line names the columns, the rows."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.data.values import Row, check_text
from tunesmith.errors import RowError

_LONGEST_CELL = 1 << 27


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a table separates and quotes its cells; `quote` "" means that quotes are plain text."""

    delimiter: str = ","
    quote: str = '"'

    def records(self, lines: Iterable[str]) -> Any:
        """The cells of each record."""
        csv.field_size_limit(_LONGEST_CELL)
        if not self.quote:
            return csv.reader(lines, delimiter=self.delimiter, quoting=csv.QUOTE_NONE)
        return csv.reader(lines, delimiter=self.delimiter, quotechar=self.quote)


@dataclass(frozen=True, slots=True)
class Table:
    """How one file writes its table, and what is to be told about it."""

    dialect: Dialect
    header: tuple[str, ...]
    has_header: bool
    notes: tuple[str, ...]
    regular: float = 1.0
    """Share of the first records that are as wide as most, where there is more than one column."""


def sniff(sample: str, suffix: str, known: Collection[str], whole: bool) -> Table:
    """How a table is written, from its beginning; `whole` when the sample is all of it."""
    first = "\t" if suffix in (".tsv", ".tab") else ","
    marks = dict.fromkeys((first, ",", "\t", ";", "|"))
    tried = [Dialect(mark, quote) for quote in ('"', "'", "") for mark in marks]
    scored = [(_score(_records(sample, dialect, whole)), dialect) for dialect in tried]
    best = max(score for score, _ in scored)
    dialect = next(dialect for score, dialect in scored if score == best)
    records = _records(sample, dialect, whole) or [[sample.strip()]]
    named = _is_header(records[0], records[1:], known)
    width = len(records[0])
    if named:
        header = _unique([cell.strip("\ufeff \t\r\n") for cell in records[0]])
    else:
        header = ("text", "label") if width == 2 else _unique([""] * width)
    notes: list[str] = []
    if dialect.delimiter not in (",", "\t"):
        notes.append(f"cells are separated by `{dialect.delimiter}`")
    if not named:
        notes.append(f"no header line; the columns are taken as {', '.join(header)}")
    return Table(dialect, header, named, tuple(notes), _regular(records))


def table_rows(stream: Iterable[str], table: Table) -> Iterator[Row]:
    """Every record of a table with the line it starts on."""
    records = table.dialect.records(stream)
    if table.has_header:
        next(records, None)
    start = records.line_num + 1
    while True:
        try:
            cells: list[str] | None = next(records, None)
        except csv.Error as error:
            yield Row(start, " ", error=RowError(f"the row is not valid CSV ({error})"))
            cells = []
        if cells is None:
            return
        if cells:
            yield _row(start, table.header, cells)
        start = records.line_num + 1


def _row(line: int, header: Sequence[str], cells: Sequence[str]) -> Row:
    value: dict[str, Any] = dict(zip(header, cells, strict=False))
    extra = [cell for cell in cells[len(header) :] if cell.strip()]
    try:
        if extra:
            raise RowError(
                f"the row has {len(cells)} cells",
                expected=f"{len(header)}, as the header",
                remedy="Put a cell that holds the delimiter or a quote in double quotes.",
            )
        check_text("\n".join(cells), line)
    except RowError as error:
        return Row(line, value=list(cells), error=error)
    return Row(line, value=value)


def _records(sample: str, dialect: Dialect, whole: bool) -> list[list[str]]:
    """The sample's records; the last one may be cut and is left out where it may."""
    try:
        reader = dialect.records(io.StringIO(sample, newline=""))
        records = [cells for cells in reader if cells]
    except csv.Error:
        return []
    return records if whole or len(records) < 2 else records[:-1]


def _score(records: list[list[str]]) -> float:
    """Share of records as wide as most are, less the share of cells that still wear quotes."""
    if not records:
        return -1.0
    regular = _regular(records)
    if not regular:
        return 0.0
    cells = [cell for record in records for cell in record if cell]
    worn = sum(len(cell) > 1 and cell[0] == cell[-1] and cell[0] in "\"'" for cell in cells)
    swallowed = sum(cell.count("\n") > 20 for cell in cells)
    return regular - worn / max(len(cells), 1) - swallowed / len(records)


def _regular(records: list[list[str]]) -> float:
    width, count = Counter(map(len, records)).most_common(1)[0]
    return count / len(records) if width > 1 else 0.0


def _is_header(first: list[str], rest: list[list[str]], known: Collection[str]) -> bool:
    names = [cell.strip("\ufeff \t\r\n").casefold() for cell in first]
    if any(name in known for name in names):
        return True
    for column, name in enumerate(names):
        below = (cells[column].strip().casefold() for cells in rest if len(cells) > column)
        number = name.replace(".", "", 1).lstrip("-").isdigit()
        if name in below or number or len(name) > 60 or len(name.split()) > 4:
            return False
    return any(names)


def _unique(names: Sequence[str]) -> tuple[str, ...]:
    out: list[str] = []
    for number, name in enumerate(names, 1):
        name = name or f"column {number}"
        out.append(f"{name} ({number})" if name in out else name)
    return tuple(out)
