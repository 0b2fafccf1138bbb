"""The text in one file of documents, by its kind, within limits on what it may unpack to."""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import bs4
import defusedxml
import pypdf
from defusedxml import ElementTree
from pypdf.errors import PyPdfError

from tunesmith.data.files import open_binary
from tunesmith.data.layout import DOCUMENT_COLUMNS
from tunesmith.errors import DataError

MOST_BYTES = 64 << 20
"""Largest file, as it is and as what it unpacks to."""
MOST_PAGES = 5000
IDS = (*DOCUMENT_COLUMNS, "id")
_BODY = "word/document.xml"
_WORD = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_UNSEEN = ("script", "style", "template", "noscript", "head")


class Part(NamedTuple):
    """A text that stands at `line` of its file (a page, where it has pages).

    `row_id` is the id that a row of JSONL has of its own; `answer` what such a row answers.
    """

    line: int
    title: str
    text: str
    row_id: str = ""
    answer: str = ""


def read(path: Path, name: str) -> list[Part]:
    """The texts of a file: one, one a page of a PDF, or one a row of JSONL.

    Raises:
        DataError: too large as it is or unpacked, of too many pages, damaged, locked, or without
            text.
    """
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise DataError(f"{name} has {size:,} bytes", expected=f"at most {MOST_BYTES:,}")
    parts = [part for part in _READERS[path.suffix.lower()](path, name) if part.text.strip()]
    if not parts:
        raise DataError(
            f"no text was found in {name}",
            expected="a document with text",
            remedy="Scanned pages have to be recognised (OCR) first."
            if path.suffix.lower() == ".pdf"
            else "Leave it out.",
        )
    return parts


def _plain(path: Path, name: str) -> str:
    # Also what a .gz under another name unpacks to.
    with open_binary(path, name, MOST_BYTES) as file:
        data = file.read()
    mark = data[:2] in (b"\xff\xfe", b"\xfe\xff")
    try:
        text = data.decode("utf-16" if mark else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{name} is not valid UTF-8 (byte {error.start:,})",
            expected="text in UTF-8 or UTF-16",
            remedy="Save it again as UTF-8.",
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _text(path: Path, name: str) -> Iterator[Part]:
    yield Part(1, path.stem, _plain(path, name))


def _markdown(path: Path, name: str) -> Iterator[Part]:
    """A part for each section, with its heading as the title."""
    title, start, lines, fenced = path.stem, 1, list[str](), False
    for number, line in enumerate(_plain(path, name).split("\n"), 1):
        fenced ^= line.lstrip().startswith("```")
        if line.startswith("#") and not fenced:
            yield Part(start, title, "\n".join(lines))
            title, start, lines = line.strip("# \t") or title, number + 1, []
        else:
            lines.append(line)
    yield Part(start, title, "\n".join(lines))


def _html(path: Path, name: str) -> Iterator[Part]:
    page = bs4.BeautifulSoup(_plain(path, name), "html.parser")
    title = page.title.get_text(" ", strip=True) if page.title else ""
    for part in page(_UNSEEN):
        part.decompose()
    for block in page(("p", "div", "li", "tr", "br", "section", "h1", "h2", "h3", "h4", "pre")):
        block.append("\n\n")
    lines = (" ".join(line.split()) for line in page.get_text(" ").split("\n\n"))
    yield Part(1, title or path.stem, "\n\n".join(line for line in lines if line))


def _pdf(path: Path, name: str) -> Iterator[Part]:
    try:
        reader = pypdf.PdfReader(io.BytesIO(path.read_bytes()))
        if reader.is_encrypted and not reader.decrypt(""):
            raise DataError(f"{name} is locked with a password", remedy="Save it without one.")
        if len(reader.pages) > MOST_PAGES:
            raise DataError(
                f"{name} has {len(reader.pages):,} pages", expected=f"at most {MOST_PAGES:,}"
            )
        left = MOST_BYTES
        for number, page in enumerate(reader.pages, 1):
            text = page.extract_text()
            left -= len(text)
            if left < 0:
                raise _bomb(name)
            yield Part(number, path.stem, text)
    except (PyPdfError, ValueError, KeyError, RecursionError, zlib.error) as error:
        raise DataError(
            f"{name} cannot be read: {str(error)[:200]}", expected="a whole PDF"
        ) from None


def _docx(path: Path, name: str) -> Iterator[Part]:
    try:
        with zipfile.ZipFile(path) as packed:
            # What a member claims is also the most that is read of it.
            if packed.getinfo(_BODY).file_size > MOST_BYTES:
                raise _bomb(name)
            body = ElementTree.fromstring(packed.read(_BODY), forbid_dtd=True)
    except (zipfile.BadZipFile, KeyError, ElementTree.ParseError, zlib.error) as error:
        raise DataError(f"{name} cannot be read: {error}", expected="a whole .docx") from None
    except defusedxml.DefusedXmlException:
        raise DataError(
            f"{name} defines entities of its own", expected="a .docx as Word writes it"
        ) from None
    paragraphs = (
        "".join(_piece(node.tag, node.text) for node in paragraph.iter())
        for paragraph in body.iter(f"{_WORD}p")
    )
    yield Part(1, path.stem, "\n\n".join(text for text in paragraphs if text.strip()))


def _piece(tag: str, text: str | None) -> str:
    return {f"{_WORD}t": text or "", f"{_WORD}tab": "\t", f"{_WORD}br": "\n"}.get(tag, "")


def _jsonl(path: Path, name: str) -> Iterator[Part]:
    for number, line in enumerate(_plain(path, name).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{name}:{number} is not JSON: {error}", expected="JSON lines"
            ) from None
        part = _row(row, number) if isinstance(row, dict) else None
        if part is None:
            raise DataError(
                f"{name}:{number} is no document",
                expected="`text` (with a `title`), or `question` and `answer`",
            )
        yield part


def _row(row: Mapping[str, Any], line: int) -> Part | None:
    values = {key: value for key, value in row.items() if isinstance(value, str | int)}
    row_id = next((str(values[key]).strip() for key in IDS if key in values), "")
    text, title = values.get("text"), str(values.get("title", ""))
    if isinstance(text, str):
        return Part(line, title, text, row_id)
    question, answer = values.get("question"), values.get("answer")
    if isinstance(question, str) and isinstance(answer, str):
        return Part(line, question, answer, row_id, answer)
    return None


def _bomb(name: str) -> DataError:
    return DataError(f"{name} unpacks to too much", expected=f"at most {MOST_BYTES:,} bytes")


_READERS: Mapping[str, Callable[[Path, str], Iterator[Part]]] = {
    ".md": _markdown,
    ".markdown": _markdown,
    ".txt": _text,
    ".html": _html,
    ".htm": _html,
    ".pdf": _pdf,
    ".docx": _docx,
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
}
KINDS = tuple(_READERS)
"""Endings of files that documents are read from."""
