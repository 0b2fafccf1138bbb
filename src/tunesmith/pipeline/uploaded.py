"""The files of a fine-tuning job, refused as OpenAI's API refuses them: whole, by example and message.

Chat and prompt/completion rows as JSON Lines. Examples count from 1; blank lines are none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice, takewhile
from pathlib import Path
from typing import Literal

import numpy as np

from tunesmith.data.dataset import Dataset
from tunesmith.data.files import open_file
from tunesmith.data.layout import KNOWN_COLUMNS, REQUIRED, Layout
from tunesmith.errors import DataError, FileRefused
from tunesmith.pipeline.prepare import Prepared

Tell = Callable[[str, str], None]
"""Takes a level (info, warn, error) and a sentence."""
LEAST = 10
SHOWN = 20
"""Most examples that are named one by one."""
LONGEST = 16 << 20
"""Bytes of a line; a longer one is refused before it is held in memory."""
PREFERENCES = (
    "Input file {} is in the fine-tune-preference format, but the specified fine-tuning job is not "
    "using 'dpo' as the training method (provided method=supervised)."
)
UNEXPECTED = "Unexpected file format, expected either prompt/completion pairs or chat messages."
FORMATS = ("chat", "prompt-completion")
_SPACE = b"\xef\xbb\xbf \t\r\n"
_TURN = re.compile(r"\bturn (\d+)")


@dataclass(frozen=True, slots=True)
class Upload:
    """An uploaded file, and what its owner knows it by."""

    path: str
    id: str
    name: str
    kind: Literal["training", "validation"]

    def refused(self, reason: str) -> FileRefused:
        """The refusal of this file."""
        return FileRefused(
            f"The job failed due to an invalid {self.kind} file. {reason}",
            code=f"invalid_{self.kind}_file",
            param=f"{self.kind}_file",
        )


def check_lines(upload: Upload) -> None:
    """Refuse what is not JSON Lines, or too little of it, before a row is looked at.

    Raises:
        FileRefused: see above.
    """
    if not Path(upload.path).is_file():
        raise upload.refused(f"{upload.name} is not there any more.")
    examples = 0
    for examples, (_, content) in enumerate(_examples(upload), 1):
        if len(content) > LONGEST:
            raise upload.refused(f"Example {examples} has more than {LONGEST:,} bytes.")
    if examples and not _is_lines(upload):
        raise upload.refused(f"{UNEXPECTED} One JSON object on each line, in UTF-8.")
    least = LEAST if upload.kind == "training" else 1
    if examples < least:
        raise FileRefused(
            f"{upload.kind.capitalize()} file has {examples} example(s), but must have at least "
            f"{least} examples",
            code="invalid_n_examples",
            param=f"{upload.kind}_file",
        )


def accept(prepared: Prepared, uploads: Sequence[Upload], tell: Tell) -> None:
    """Refuse files with any example that cannot be learned as it stands; tell of what is odd.

    Raises:
        FileRefused: another format, bad examples (the first of them are told), or none left.
    """
    read = list(zip(uploads, prepared.files, strict=True))
    for upload, dataset in read:
        _check_layout(upload, dataset.layouts[0])
    refusals = [_refusal(upload, dataset, tell) for upload, dataset in read if dataset.bad]
    if refusals:
        raise refusals[0]
    for upload, dataset in read:
        for note in named(dataset.notes, uploads):
            tell("info", note)
        _tell_copies(upload, dataset, tell)
    if not len(prepared.split.train):
        raise uploads[-1].refused("Every example of the training file stands in it as well.")


def of_reader(error: DataError, uploads: Sequence[Upload]) -> FileRefused:
    """What the reader says of a file as a whole, as a refusal of that file."""
    about = next((upload for upload in uploads if upload.path in error.found), uploads[0])
    expected = f"; expected {error.expected}" if error.expected else ""
    (said,) = named([error.found + expected], uploads)
    return about.refused(f"{said}.")


def named(texts: Iterable[str], uploads: Sequence[Upload]) -> list[str]:
    """Texts with the examples' numbers and the file's own name for lines and paths of this disk."""
    out = list(texts)
    for upload in uploads:
        place = re.compile(re.escape(upload.path) + r":(\d+)")
        numbers = _numbers(upload, {int(line) for text in out for line in place.findall(text)})
        of = "" if upload.kind == "training" else f" of {upload.name}"
        names = {f"{upload.path}:{line}": f"example {n}{of}" for line, n in numbers.items()}
        out = [place.sub(lambda found, names=names: names[found[0]], text) for text in out]
        out = [text.replace(upload.path, upload.name) for text in out]
    return out


def _examples(upload: Upload) -> Iterator[tuple[int, bytes]]:
    """(line, content) of every line that is not blank, in pieces where it is longer than LONGEST."""
    with Path(upload.path).open("rb") as file:
        for line in count(1):
            content = file.readline(LONGEST + 1)
            if not content:
                return
            if content.strip(_SPACE):
                yield line, content


def _numbers(upload: Upload, lines: Collection[int]) -> dict[int, int]:
    """Which example stands on each of these lines."""
    if not lines:
        return {}
    last = max(lines)
    examples = takewhile(lambda example: example[0] <= last, _examples(upload))
    return {line: number for number, (line, _) in enumerate(examples, 1) if line in lines}


def _is_lines(upload: Upload) -> bool:
    path = Path(upload.path)
    with path.open("rb") as file:
        if file.read(2) == b"\x1f\x8b":
            return False
    try:
        found = open_file(upload.path, path.parent, KNOWN_COLUMNS)
    except DataError as error:
        raise of_reader(error, [upload]) from None
    return found.container == "lines" and found.encoding.startswith("utf-8")


def _check_layout(upload: Upload, layout: Layout | None) -> None:
    if layout is None or layout.format not in (*FORMATS, "preference"):
        raise upload.refused(UNEXPECTED)
    if layout.format == "preference":
        raise upload.refused(PREFERENCES.format(upload.id))
    if any(layout.columns[name] != name for name in REQUIRED[layout.format]):
        raise upload.refused(UNEXPECTED)


def _refusal(upload: Upload, dataset: Dataset, tell: Tell) -> FileRefused:
    """Tell of the bad examples, and refuse the file for the first of them."""
    bad = list(islice(dataset.rejected(), SHOWN))
    numbers = _numbers(upload, {item.source.line for item in bad})
    said: list[str] = []
    for item in bad:
        turn = _TURN.search(item.reason)
        message = f", message {turn[1]}" if turn else ""
        said.append(f"Example {numbers[item.source.line]}{message}: {item.reason}")
    for reason in said:
        tell("error", f"{upload.name}: {reason}")
    if dataset.bad > len(said):
        tell("error", f"{upload.name}: {dataset.bad - len(said):,} more examples are invalid")
    return upload.refused(f"Invalid file format. {said[0]}")


def _tell_copies(upload: Upload, dataset: Dataset, tell: Tell) -> None:
    """Without bad rows, a dataset's rows are the file's examples in their order."""
    _, first = np.unique(dataset.digests, axis=0, return_index=True)
    copies = np.setdiff1d(np.arange(len(dataset)), first)
    if len(copies):
        shown = ", ".join(f"{number:,}" for number in (copies[:SHOWN] + 1).tolist())
        more = ", ..." if len(copies) > SHOWN else ""
        tell(
            "warn",
            f"{upload.name}: {len(copies):,} example(s) repeat an earlier one word for word, and are "
            f"kept: {shown}{more}",
        )
