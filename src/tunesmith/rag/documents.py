"""The documents of a run: which files they come from, and what each of them is called."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tunesmith.data.examples import Source
from tunesmith.errors import DataError, UsageError
from tunesmith.rag import formats

MOST_DOCUMENTS = 100_000
MOST_CHARACTERS = 256 << 20


@dataclass(frozen=True, slots=True)
class Document:
    """A text that can be looked up.

    Attributes:
        id: its row's own id (doc_id, faq_id, document_id, id), or FILE:LINE.
        source: its file and line; the page, in a PDF.
        named: whether rows can name it, as it has an id of its own.
        whole: a question with its answer, which belongs together.
    """

    id: str
    source: Source
    title: str
    text: str
    named: bool = False
    whole: bool = False


@dataclass(frozen=True, slots=True)
class Documents:
    """All documents in the order of their files, and what is to be told of them.

    Attributes:
        answers: {id: answer} of documents that are a question and its answer.
        key: sha256 of their ids, titles and texts.
    """

    documents: tuple[Document, ...]
    answers: Mapping[str, str]
    notes: tuple[str, ...]
    key: str


def read(names: Sequence[str], *, own: Sequence[str] = ()) -> Documents:
    """The documents of files and folders.

    Args:
        own: the files of the run's own rows; they, and copies of them, are never documents, since
            they hold the answers that are to be measured.

    Raises:
        UsageError: a name is neither file nor folder, or of no kind that is read.
        DataError: see `formats.read`; or there are no documents, or too many.
    """
    rows = {_hash(Path(name)) for name in own if Path(name).is_file()}
    notes: list[str] = []
    found: list[Document] = []
    answers: dict[str, str] = {}
    characters = 0
    for path, name in _files(names, notes):
        if _hash(path) in rows:
            notes.append(f"{name} holds the run's own rows: it is not among the documents")
            continue
        for part in formats.read(path, name):
            place = Source(name, part.line)
            key = part.row_id or f"{name}:{part.line}"
            named, whole = bool(part.row_id), bool(part.answer)
            found.append(Document(key, place, part.title, part.text, named, whole))
            if part.row_id and part.answer:
                answers[part.row_id] = part.answer
            characters += len(part.text)
            if len(found) > MOST_DOCUMENTS or characters > MOST_CHARACTERS:
                raise DataError(
                    f"more than {len(found) - 1:,} documents of {characters:,} characters",
                    expected=f"at most {MOST_DOCUMENTS:,} of {MOST_CHARACTERS:,} together",
                )
    if not found:
        raise DataError("there are no documents", expected="files of " + ", ".join(formats.KINDS))
    twice = [key for key, count in Counter(d.id for d in found if d.named).items() if count > 1]
    for key in twice:
        answers.pop(key, None)
    if twice:
        notes.append(f"{len(twice):,} ids stand for several documents each, as {twice[0]}")
    notes.insert(0, f"{len(found):,} documents of {characters:,} characters")
    said = "\0".join(f"{d.id}\1{d.title}\1{d.text}" for d in found)
    return Documents(tuple(found), answers, tuple(notes), hashlib.sha256(said.encode()).hexdigest())


def _files(names: Sequence[str], notes: list[str]) -> Iterator[tuple[Path, str]]:
    seen: set[Path] = set()
    for name in names:
        path = Path(name)
        if path.is_dir():
            inside = [p for p in sorted(path.rglob("*")) if p.is_file() and p.name[0] != "."]
            files = [p for p in inside if p.suffix.lower() in formats.KINDS]
            if len(files) < len(inside):
                other = len(inside) - len(files)
                notes.append(f"{other:,} files in {name} are of kinds that are not read")
        elif not path.is_file() or path.suffix.lower() not in formats.KINDS:
            raise UsageError(
                f"--docs {name} is {'of no kind that is read' if path.is_file() else 'not there'}",
                expected="a folder, or a file of " + ", ".join(formats.KINDS),
            )
        else:
            files = [path]
        for file in files:
            if file.resolve() not in seen:
                seen.add(file.resolve())
                yield file, str(file)


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
