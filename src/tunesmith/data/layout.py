"""How the rows of a file are laid out: its format, and the column of each standard name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.data.messages import MESSAGE_FIELDS
from tunesmith.errors import UsageError
from tunesmith.sections import Format

# Standard name -> the names it goes by, the likeliest first.
_FIELDS: dict[Format, dict[str, tuple[str, ...]]] = {
    "preference": {
        "chosen": ("chosen", "chosen_messages", "preferred_output"),
        "rejected": ("rejected", "rejected_messages", "non_preferred_output"),
        "prompt": ("prompt", "input", "question", "instruction"),
        "system": ("system",),
        "tools": ("tools",),
    },
    "unpaired-preference": {
        "messages": ("messages",),
        "prompt": ("prompt", "input", "question", "instruction"),
        "completion": ("completion", "output", "response", "answer"),
        "label": ("label",),
        "system": ("system",),
        "tools": ("tools",),
    },
    "chat": {"messages": ("messages",), "tools": ("tools", "functions")},
    "sharegpt": {
        "conversations": ("conversations", "conversation"),
        "system": ("system",),
        "tools": ("tools",),
    },
    "alpaca": {
        "instruction": ("instruction",),
        "input": ("input", "context"),
        "output": ("output", "response"),
        "system": ("system",),
        "history": ("history",),
    },
    "question-answer": {
        "question": ("question",),
        "answer": ("answer",),
        "context": ("context",),
        "system": ("system",),
    },
    "prompt-completion": {
        "prompt": ("prompt", "input", "instruction", "question", "query", "source"),
        "completion": ("completion", "output", "response", "answer", "target"),
        "system": ("system",),
        "tools": ("tools",),
    },
    "text-label": {
        "text": ("text", "sentence", "utterance", "instruction", "query", "prompt", "question"),
        "label": ("label", "category", "intent", "topic", "class"),
        "system": ("system",),
    },
    "text": {"text": ("text", "content", "document")},
}
_RECOGNISED: tuple[Format, ...] = tuple(format for format in _FIELDS if format != "text")
"""Text has to be asked for: a column of it stands in rows of many kinds."""
REQUIRED: dict[Format, tuple[str, ...]] = {
    "preference": ("chosen", "rejected"),
    "unpaired-preference": ("label",),
    "chat": ("messages",),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "output"),
    "question-answer": ("question", "answer"),
    "prompt-completion": ("prompt", "completion"),
    "text-label": ("text", "label"),
    "text": ("text",),
}
TITLES: dict[Format, str] = {
    "preference": "preference pairs",
    "unpaired-preference": "rated answers (KTO)",
    "chat": "OpenAI chat",
    "sharegpt": "ShareGPT",
    "alpaca": "Alpaca",
    "question-answer": "question/answer",
    "prompt-completion": "prompt/completion",
    "text-label": "text/label",
    "text": "text",
}
STANDARD_NAMES = tuple(dict.fromkeys(name for fields in _FIELDS.values() for name in fields))
DOCUMENT_COLUMNS = ("doc_id", "faq_id", "document_id")
"""Columns in which a row names the document that answers it."""
_TRUTH = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}
KNOWN_COLUMNS = frozenset(
    alias for format in _RECOGNISED for names in _FIELDS[format].values() for alias in names
)
_PLAIN_TEXT_NAMES = frozenset(("text", "sentence", "utterance"))


@dataclass(frozen=True, slots=True)
class Layout:
    """The format of one file, with the column of each standard name and what is to be told."""

    format: Format
    columns: Mapping[str, str]
    notes: tuple[str, ...]


PASSAGES = Layout(
    "text",
    {"text": "text", "ends": "ends"},
    ("read as running text, in passages of whole paragraphs; what is held out is its end",),
)
"""What `files` makes of running text."""


def recognise(
    sample: Sequence[Mapping[str, Any]], format: Format = "auto", columns: Mapping[str, str] = {}
) -> Layout | None:
    """The layout that most rows of a sample have; None where none fits.

    Raises:
        UsageError: a standard name in `columns` is not known, or the format that was asked for
            does not find its columns.
    """
    wrong = [name for name in columns if name not in STANDARD_NAMES]
    if wrong:
        raise UsageError(
            f"--map {wrong[0]}={columns[wrong[0]]}: `{wrong[0]}` is no standard name",
            expected="one of " + ", ".join(STANDARD_NAMES),
        )
    keys = tuple(dict.fromkeys(key for row in sample for key in row))
    if format == "auto":
        kinds = [_format_of(row, sample, columns) for row in sample]
        if not any(kinds):
            return None
        format = max(_RECOGNISED, key=kinds.count)
    found = _columns(format, keys, columns)
    missing = [name for name in REQUIRED[format] if name not in found]
    if missing and keys:
        raise UsageError(
            f"read as {TITLES[format]}, there is no column for `{missing[0]}`",
            expected="one of " + ", ".join(f"`{key}`" for key in keys),
            remedy=f"Name it: --map {missing[0]}=COLUMN.",
        )
    return Layout(format, found, _notes(format, found, keys, sample))


def _format_of(
    row: Mapping[str, Any], sample: Sequence[Mapping[str, Any]], columns: Mapping[str, str]
) -> Format | None:
    for format in _RECOGNISED:
        found = _columns(format, tuple(row), columns)
        mapped = all(name in found for name, column in columns.items() if column in row)
        if mapped and all(name in found for name in REQUIRED[format]):
            if format == "unpaired-preference" and not _is_rated(row, found):
                continue
            if format == "alpaca" and _is_plain_pair(found):
                continue
            if format == "text-label" and not _few_labels(found, sample, columns):
                continue
            return format
    return None


def _is_plain_pair(found: Mapping[str, str]) -> bool:
    """Instruction and response with nothing else: a prompt and its completion."""
    return found["output"].casefold() == "response" and not {"input", "history"} & found.keys()


def _is_rated(row: Mapping[str, Any], found: Mapping[str, str]) -> bool:
    answered = "messages" in found or {"prompt", "completion"} <= found.keys()
    return answered and truth_of(row[found["label"]]) is not None


def _few_labels(
    found: Mapping[str, str], sample: Sequence[Mapping[str, Any]], columns: Mapping[str, str]
) -> bool:
    """Beside a column that may hold anything, labels show themselves by their repetition."""
    if found["text"].casefold() in _PLAIN_TEXT_NAMES or "label" in columns or len(sample) < 20:
        return True
    labels = {str(row.get(found["label"])) for row in sample}
    return len(labels) <= len(sample) / 2


def _columns(format: Format, keys: Sequence[str], columns: Mapping[str, str]) -> dict[str, str]:
    taken = {column for name, column in columns.items() if name in _FIELDS[format]}
    folded = {key.strip().casefold(): key for key in reversed(keys) if key not in taken}
    out: dict[str, str] = {}
    for name, aliases in _FIELDS[format].items():
        key = columns.get(name)
        if key is None or key not in keys:
            key = next((folded[alias] for alias in aliases if alias in folded), None)
        if key is not None and key not in out.values():
            out[name] = key
    return out


def _notes(
    format: Format,
    found: Mapping[str, str],
    keys: Sequence[str],
    sample: Sequence[Mapping[str, Any]],
) -> tuple[str, ...]:
    renamed = [f"{name} = `{key}`" for name, key in found.items() if name != key]
    note = f"read as {TITLES[format]}" + (f" ({', '.join(renamed)})" if renamed else "")
    named = [key for key in keys if key in DOCUMENT_COLUMNS]
    unused = [f"`{key}`" for key in keys if key not in (*found.values(), *named)]
    if named:
        note += f"; `{named[0]}` names a row's document"
    if unused:
        many = len(unused) > 1
        note += f"; the column{'s' if many else ''} {', '.join(unused)} {'are' if many else 'is'} not used"
    notes = [note]
    if format == "text-label":
        kinds = {type(row.get(found["label"])) for row in sample}
        if kinds & {int, float, bool}:
            notes.append(f"the numbers or truth values in `{found['label']}` are learned as text")
    if format in ("chat", "sharegpt"):
        name = found["messages" if format == "chat" else "conversations"]
        turns = (turn for row in sample if isinstance(row.get(name), list) for turn in row[name])
        fields = dict.fromkeys(key for turn in turns if isinstance(turn, dict) for key in turn)
        odd = [f"`{key}`" for key in fields if key not in MESSAGE_FIELDS]
        if odd:
            notes.append(f"in the messages, {', '.join(odd)} not used")
    return tuple(notes)


def truth_of(value: object) -> bool | None:
    """A truth value from JSON or from a cell; None where it is none."""
    return (
        _TRUTH.get(str(value).strip().casefold()) if isinstance(value, str | int | float) else None
    )
