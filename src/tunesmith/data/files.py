"""Files to raw rows: containers, encodings, compression. What a row means is not known here."""

from __future__ import annotations

import contextlib
import gzip
import io
import re
import shutil
import sys
import tempfile
import zlib
from collections.abc import Collection, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import pyarrow as pa
import pyarrow.parquet as pq

from tunesmith.data.passages import passages
from tunesmith.data.tables import Table, sniff, table_rows
from tunesmith.data.values import Row, check_text, read_values
from tunesmith.errors import DataError, RowError

UNPACKED_LIMIT = 8 << 30
RATIO_LIMIT = 400
_RATIO_FROM = 64 << 20
_SAMPLE = 1 << 16
_EXPECTED = "JSONL, a JSON array, CSV, TSV or Parquet, each also as .gz"
_TEXT = (".txt", ".md")
_TABLES = (".csv", ".tsv", ".tab")
_REGULAR = 0.8
"""Share of records of one width above which a .txt file is a table and not prose with commas."""
_BINARY = {
    b"\xff\xd8\xff": "a JPEG image",
    b"\x89PNG": "a PNG image",
    b"GIF8": "a GIF image",
    b"%PDF": "a PDF",
    b"PK\x03\x04": "a ZIP archive or an Office file",
    b"BZh": "a bzip2 archive",
    b"\x28\xb5\x2f\xfd": "a Zstandard archive",
}
_MARKS = {
    b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe\x00\x00": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file whose container and encoding are known; its rows can be read any number of times."""

    name: str
    path: Path
    container: Literal["lines", "array", "objects", "table", "parquet", "text"]
    encoding: str = "utf-8"
    table: Table | None = None
    notes: tuple[str, ...] = ()
    stamp: tuple[int, int] = (0, 0)

    def rows(self) -> Generator[Row, None, None]:
        """Every row, the broken ones with their error; blank lines are no rows.

        A passage of running text is {"text", "ends"}; its line ends are "\\n", whatever they were.

        Raises:
            DataError: the file changed since it was opened, or cannot be unpacked.
        """
        if _stamp(self.path) != self.stamp:
            raise DataError(
                f"{self.name} changed while it was read", remedy="Run the same command again."
            )
        if self.container == "parquet":
            yield from _parquet_rows(self.path, self.name)
            return
        with _open_text(self.path, self.name, self.encoding) as stream:
            try:
                if self.container == "text":
                    yield from _passage_rows(stream)
                elif self.container == "lines":
                    yield from _line_rows(stream)
                elif self.table is not None:
                    yield from table_rows(stream, self.table)
                else:
                    yield from read_values(stream, array=self.container == "array")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{self.name} is not valid {self.encoding} ({error.reason})",
                    expected="text in UTF-8 or UTF-16",
                    remedy="Save it again as UTF-8.",
                ) from None


def open_file(name: str, spool: Path, known: Collection[str], *, text: bool = False) -> DataFile:
    """Look at the beginning of a file and say how its rows are found.

    Args:
        name: a path, or `-` for standard input.
        spool: a folder for what can be read only once: standard input, pipes, packed Parquet.
        known: column names in lower case; a first line that has one of them is a header.
        text: what is neither JSON nor a table by its name is running text.

    Raises:
        DataError: missing, unreadable, empty, or not a container that rows come in.
    """
    path = _regular(name, spool)
    with open_binary(path, name) as stream:
        head = stream.read(_SAMPLE)
    if not head:
        raise DataError(f"{name} is empty", expected=_EXPECTED)
    if head.startswith(b"PAR1"):
        path = _unpacked(path, name, spool)
        return DataFile(name, path, "parquet", stamp=_stamp(path))
    encoding = _encoding(head, name)
    with _open_text(path, name, encoding) as stream:
        sample = stream.read(_SAMPLE)
    notes = (f"text in {encoding}",) if encoding.startswith(("utf-16", "utf-32")) else ()
    suffixes = [suffix.lower() for suffix in Path(name).suffixes if suffix.lower() != ".gz"]
    suffix = suffixes[-1] if suffixes else ""
    start = sample.lstrip("\ufeff \t\r\n")[:1]
    if not start:
        raise DataError(f"{name} holds nothing but space", expected=_EXPECTED)
    if text and suffix in _TEXT:
        return DataFile(name, path, "text", encoding, notes=notes, stamp=_stamp(path))
    if suffix not in _TABLES and start in "[{":
        container = "array" if start == "[" else _lines_or_objects(sample)
        return DataFile(name, path, container, encoding, notes=notes, stamp=_stamp(path))
    if suffix in (".json", ".jsonl", ".ndjson"):
        raise DataError(
            f"{name} is not JSON: line 1, column 1 holds {start!r}",
            expected="[ or { there",
            remedy="If it is a table, name it .csv.",
        )
    if text and suffix not in _TABLES:
        return DataFile(name, path, "text", encoding, notes=notes, stamp=_stamp(path))
    table = sniff(sample, suffix, known, whole=len(sample) < _SAMPLE)
    if suffix in _TEXT and table.regular < _REGULAR:
        raise DataError(
            f"{name} is plain text",
            expected=_EXPECTED,
            remedy="To learn from text as it is, type tunesmith train with --set method.type=cpt.",
        )
    notes += table.notes
    return DataFile(name, path, "table", encoding, table, notes, _stamp(path))


def open_binary(path: Path, name: str, limit: int = UNPACKED_LIMIT) -> BinaryIO:
    """The bytes of a file, unpacked where it is gzipped, up to `limit` bytes.

    Raises:
        DataError: the file cannot be read, or (while reading) unpacks to more than the limit.
    """
    try:
        packed = path.open("rb")
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror}", expected=_EXPECTED) from None
    magic = packed.read(2)
    packed.seek(0)
    if magic != b"\x1f\x8b":
        return packed
    return cast(BinaryIO, io.BufferedReader(_Unpacking(packed, name, limit), 1 << 16))


class _Unpacking(io.RawIOBase):
    """Gunzips, and refuses what unpacks to more than anybody's data does."""

    def __init__(self, packed: BinaryIO, name: str, limit: int) -> None:
        self._packed, self._name, self._limit = packed, name, limit
        self._size = Path(str(packed.name)).stat().st_size
        self._gzip = gzip.GzipFile(fileobj=packed)
        self._count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._gzip.read(len(buffer))
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(
                f"{self._name} cannot be unpacked: {error}", expected="a whole .gz file"
            ) from None
        self._count += len(data)
        if self._count > min(self._limit, max(_RATIO_FROM, RATIO_LIMIT * self._size)):
            raise DataError(
                f"{self._name} unpacks to more than {self._count - 1:,} bytes",
                expected=f"at most {self._limit:,} bytes and {RATIO_LIMIT} times the packed size",
                remedy="If that is right, unpack it yourself and give the unpacked file.",
            )
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._gzip.close()
        self._packed.close()
        super().close()


def _regular(name: str, spool: Path) -> Path:
    """The file itself, or a copy of what can be read only once."""
    path = Path(name)
    if name == "-":
        return _copied(sys.stdin.buffer, spool, name)
    if path.is_dir():
        raise DataError(
            f"{name} is a folder", expected=f"a file: {_EXPECTED}", remedy=f"Try {name}/*.jsonl."
        )
    if path.exists() and not path.is_file():
        with path.open("rb") as stream:
            return _copied(stream, spool, name)
    return path


def _copied(stream: BinaryIO, spool: Path, name: str) -> Path:
    spool.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=spool, delete=False) as copy:
        while chunk := stream.read(1 << 20):
            copy.write(chunk)
            if copy.tell() > UNPACKED_LIMIT:
                raise DataError(
                    f"{name} gives more than {UNPACKED_LIMIT:,} bytes",
                    remedy="Write it to a file and give its name.",
                )
    return Path(copy.name)


def _unpacked(path: Path, name: str, spool: Path) -> Path:
    with path.open("rb") as stream:
        if stream.read(4) == b"PAR1":
            return path
    with open_binary(path, name) as stream:
        return _copied(stream, spool, name)


def _stamp(path: Path) -> tuple[int, int]:
    with contextlib.suppress(OSError):
        found = path.stat()
        return found.st_size, found.st_mtime_ns
    return 0, 0


def _open_text(path: Path, name: str, encoding: str) -> io.TextIOWrapper:
    errors = "surrogateescape" if encoding.startswith("utf-8") else "surrogatepass"
    return io.TextIOWrapper(open_binary(path, name), encoding, errors=errors, newline="")


def _encoding(head: bytes, name: str) -> str:
    for mark, encoding in _MARKS.items():
        if head.startswith(mark):
            return encoding
    for magic, kind in _BINARY.items():
        if head.startswith(magic):
            raise DataError(f"{name} is {kind}", expected=_EXPECTED)
    half = max(len(head) // 2, 1)
    even, odd = head[::2].count(0) / half, head[1::2].count(0) / half
    if odd > 0.2 and even < 0.02:
        return "utf-16-le"
    if even > 0.2 and odd < 0.02:
        return "utf-16-be"
    if even + odd or len(re.findall(rb"[\x01-\x08\x0e-\x1f]", head)) > len(head) / 100:
        raise DataError(f"{name} is not a text file", expected=_EXPECTED)
    return "utf-8"


def _lines_or_objects(sample: str) -> Literal["lines", "objects"]:
    """JSON lines, or one object laid out over several lines?"""
    lines = [line.strip("\ufeff\r") for line in sample.split("\n") if line.strip()]
    if lines[0].rstrip().endswith("}") or (len(lines) > 1 and lines[1].startswith("{")):
        return "lines"
    return "objects" if len(lines) > 1 else "lines"


def _passage_rows(stream: io.TextIOWrapper) -> Iterator[Row]:
    stream.reconfigure(newline=None)
    for passage in passages(stream):
        try:
            check_text(passage.text, passage.line)
        except RowError as error:
            yield Row(passage.line, passage.text, error=error)
            continue
        yield Row(passage.line, value={"text": passage.text, "ends": passage.ends})


def _line_rows(stream: io.TextIOWrapper) -> Iterator[Row]:
    # newline="" would also end lines at a lone CR, which JSON allows as space within a value.
    stream.reconfigure(newline="\n")
    for number, line in enumerate(stream, 1):
        text = line.strip("\ufeff \t\r\n")
        if not text:
            continue
        try:
            check_text(text, number)
        except RowError as error:
            yield Row(number, text, error=error)
            continue
        yield Row(number, text)


def _parquet_rows(path: Path, name: str) -> Iterator[Row]:
    try:
        with pq.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=1024):
                for value in batch.to_pylist():
                    number += 1
                    yield Row(number, value=_without_none(value))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{name} cannot be read: {str(error)[:200]}", expected="a whole Parquet file"
        ) from None


def _without_none(value: Any) -> Any:
    """Arrow gives every struct of a column every key of any; the ones it added are None."""
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_none(item) for item in value]
    return value


def drop(spool: Path) -> None:
    """Delete what `open_file` spooled."""
    shutil.rmtree(spool, ignore_errors=True)
