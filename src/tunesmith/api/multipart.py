"""Forms with a file, written to disk while they come: no more than a buffer is ever in memory."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from tunesmith.serve.wire import Refusal
from tunesmith.settings import Settings

BUFFER = 2**20
FIELD_BYTES = 4096
"""Longest value of a field that is no file."""
AROUND_BYTES = 2**16
"""Room for fields and boundaries around a file."""
FULL_SECONDS = 60
"""When a client may try again to which the disk was too full."""


@dataclass(frozen=True, slots=True)
class Room:
    """How many bytes there is room for, and what is said to more."""

    bytes: int
    refusal: Refusal


@dataclass(frozen=True, slots=True)
class Received:
    """A form: its fields, and the file's name and size."""

    fields: dict[str, str]
    filename: str
    bytes: int


def room(settings: Settings, folder: Path, used: int, *, most: int | None = None) -> Room:
    """What a project may still send.

    Args:
        folder: where it will lie.
        used: bytes that the project has.
        most: the largest file; else the settings'.
    """
    largest = settings.max_file_bytes if most is None else most
    free = shutil.disk_usage(folder).free - settings.min_free_bytes
    left = settings.max_project_bytes - used
    rooms = (
        Room(largest, _too_large(f"Files have at most {largest:,} bytes.", "file_too_large")),
        Room(left, full(settings)),
        Room(free, disk_full()),
    )
    return min(rooms, key=lambda item: item.bytes)


def full(settings: Settings) -> Refusal:
    """The refusal of what goes beyond the project's share."""
    said = f"A project has at most {settings.max_project_bytes:,} bytes of files; delete some."
    return _too_large(said, "exceeded_quota")


async def receive(
    request: Request, target: Path, *, file: str, fields: Collection[str], allowed: Room
) -> Received:
    """Read a form whose file goes to `target`; where it is refused, nothing is left there.

    Args:
        file: name of the field that is the file.
        fields: names of other fields that there may be.

    Raises:
        Refusal: it is no form, or cut short, or too large, or has other fields.
    """
    if int(request.headers.get("content-length", "0")) > allowed.bytes + AROUND_BYTES:
        raise allowed.refusal
    done = False
    try:
        form = _Form(_boundary(request), file, fields)
        with target.open("xb") as out:
            size = await _copy(request, form, out, allowed)
        received = form.ended(size)
        done = True
        return received
    except FormParserError as error:
        raise _malformed(str(error)) from None
    except ClientDisconnect:
        raise _malformed("it was cut off") from None
    except OSError:
        raise disk_full() from None
    finally:
        if not done:
            target.unlink(missing_ok=True)


async def _copy(request: Request, form: _Form, out: BinaryIO, allowed: Room) -> int:
    size = 0
    async for chunk in request.stream():
        before = len(form.data)
        form.feed(chunk)
        size += len(form.data) - before
        if size > allowed.bytes:
            raise allowed.refusal
        if len(form.data) >= BUFFER:
            await asyncio.to_thread(out.write, form.take())
    await asyncio.to_thread(out.write, form.take())
    return size


class _Form:
    """The parser's callbacks: fields are kept, the file's bytes wait in `data` to be taken."""

    def __init__(self, boundary: bytes, file: str, fields: Collection[str]) -> None:
        self.data = bytearray()
        self._file, self._names = file, fields
        self._fields: dict[str, bytearray] = {}
        self._filename: str | None = None
        self._whole = False
        self._header, self._value, self._disposition = bytearray(), bytearray(), b""
        self._into = bytearray()
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
                "on_header_end": self._header_end,
                "on_headers_finished": self._headers_finished,
                "on_part_data": self._part_data,
                "on_end": self._end,
            },
        )

    def feed(self, chunk: bytes) -> None:
        self._parser.write(chunk)

    def take(self) -> bytes:
        taken = bytes(self.data)
        self.data.clear()
        return taken

    def ended(self, size: int) -> Received:
        if not self._whole:
            raise _malformed("its last boundary is missing")
        if self._filename is None:
            raise Refusal(
                f"Missing required parameter: '{self._file}'.",
                param=self._file,
                code="missing_required_parameter",
            )
        if size == 0:
            raise Refusal("File is empty.", param=self._file, code="empty_file")
        fields = {name: _text(value, name) for name, value in self._fields.items()}
        return Received(fields, self._filename, size)

    def _begin(self) -> None:
        self._disposition, self._into = b"", bytearray()

    def _header_end(self) -> None:
        if bytes(self._header).lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def _headers_finished(self) -> None:
        kind, options = parse_options_header(self._disposition.decode("latin-1"))
        if kind != b"form-data" or b"name" not in options:
            raise _malformed("a part has no name")
        name = _text(options[b"name"], "name")
        if name in self._fields or (name == self._file and self._filename is not None):
            raise Refusal(f"The form has '{name:.64}' twice.", param=name[:64])
        if name == self._file:
            if b"filename" not in options:
                raise Refusal(
                    f"'{name}' has to be sent as a file, with a filename.",
                    param=name,
                    code="invalid_value",
                )
            self._filename, self._into = _text(options[b"filename"], name), self.data
            return
        if name not in self._names:
            raise Refusal(
                f"Unrecognized request argument supplied: {name:.64}",
                param=name[:64],
                code="unknown_parameter",
            )
        self._into = self._fields[name] = bytearray()

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        self._into += data[start:end]
        if self._into is not self.data and len(self._into) > FIELD_BYTES:
            raise _malformed(f"a field has more than {FIELD_BYTES} bytes")

    def _end(self) -> None:
        self._whole = True


def _boundary(request: Request) -> bytes:
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise Refusal(
            "The body has to be multipart/form-data, and its Content-Type has to name the boundary."
        )
    return options[b"boundary"]


def _text(value: bytes | bytearray, name: str) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        raise Refusal(f"'{name:.64}' is not valid UTF-8.", param=name[:64]) from None


def _malformed(why: str) -> Refusal:
    return Refusal(f"The form cannot be read: {why}.", code="invalid_form")


def _too_large(said: str, code: str) -> Refusal:
    return Refusal(said, status=413, code=code, param="file")


def disk_full() -> Refusal:
    """The refusal of what the disk has no room for."""
    return Refusal(
        "The server's disk has no room for this file; its owner has to make some.",
        status=429,
        kind="server_error",
        code="disk_full",
        retry_after=FULL_SECONDS,
    )
