"""JSON answers and function calls: validity, exact match of the parsed value, F1 of its parts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from tunesmith.chat import CALL_OPEN, read_tool_calls
from tunesmith.graders.exact import same
from tunesmith.graders.grader import CorpusMetric, Floats, Grader
from tunesmith.graders.text import chrf

Pair = tuple[str, str]
"""A leaf of a JSON value: its dotted path, where an item of an array is `[]`, and its JSON text."""


@dataclass(frozen=True, slots=True)
class Parsed:
    """An answer as it is compared.

    Attributes:
        valid: it has the form that was asked for.
        value: the parsed value with numbers made alike and prose replaced; None if not valid.
        pairs: how often each leaf occurs, prose left out.
        prose: texts that are scored by likeness instead of equality.
    """

    valid: bool
    value: object
    pairs: Counter[Pair]
    prose: Mapping[str, str]


_INVALID = Parsed(False, None, Counter(), {})
_PROSE = object()


def load(text: str) -> Any:
    """The object or array that the whole text is, or None; NaN and Infinity are not JSON."""
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict | list) else None


def _refuse(constant: str) -> object:
    raise ValueError(constant)


def fields(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Every leaf with its dotted path; an empty object or array is a leaf."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from fields(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and value:
        for inner in value:
            yield from fields(inner, f"{path}[]")
    else:
        yield path, value


def _normal(value: object, prose: Collection[str], path: str = "") -> object:
    """1.0 equals 1, true does not; order of keys is irrelevant, order of items is not."""
    if isinstance(value, dict):
        return {
            key: _normal(inner, prose, f"{path}.{key}" if path else str(key))
            for key, inner in value.items()
        }
    if isinstance(value, list):
        return [_normal(inner, prose, f"{path}[]") for inner in value]
    if isinstance(value, str) and path in prose:
        return _PROSE
    return _scalar(value)


def _scalar(value: object) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value, ensure_ascii=False)


def read_json(text: str, prose: Collection[str] = ()) -> Parsed:
    """A JSON answer; `prose` are the paths whose wording is not compared exactly."""
    value = load(text)
    if value is None:
        return _INVALID
    try:
        leaves = list(fields(value))
        compared = _normal(value, prose)
    except RecursionError:
        return _INVALID
    texts = {path: leaf for path, leaf in leaves if path in prose and isinstance(leaf, str)}
    pairs = Counter((path, _scalar(leaf)) for path, leaf in leaves if path not in texts)
    return Parsed(True, compared, pairs, texts)


def read_calls(text: str) -> Parsed:
    """The calls of an answer, their order irrelevant; the text beside them is prose `content`."""
    parsed = read_tool_calls(text)
    prose = {"content": parsed.content} if parsed.content else {}
    calls: list[tuple[str, object]] = []
    pairs: Counter[Pair] = Counter()
    for call in parsed.tool_calls:
        arguments = read_json(call.arguments or "{}")
        if not arguments.valid:
            return Parsed(False, None, Counter(), prose)
        calls.append((call.name, arguments.value))
        pairs[(call.name, "called")] += 1
        pairs.update(
            {(f"{call.name}.{path}", leaf): n for (path, leaf), n in arguments.pairs.items()}
        )
    if CALL_OPEN in (parsed.content or ""):
        return Parsed(False, None, Counter(), prose)
    ordered = sorted(calls, key=lambda call: json.dumps(call, sort_keys=True))
    return Parsed(True, ordered, pairs, prose)


Read = Callable[[str], Parsed]


def _grade(read: Read, output: str, reference: str) -> Mapping[str, float]:
    given, wanted = read(output), read(reference)
    exact = given.valid and given.value == wanted.value
    scores = {
        "valid": float(given.valid),
        "exact": float(exact) if wanted.valid else same(output, reference),
    }
    for path, text in wanted.prose.items():
        scores[f"chrf:{path}"] = chrf(given.prose.get(path, ""), text)
    return scores


def _counts(read: Read, outputs: Sequence[str], references: Sequence[str]) -> Floats:
    """(n, 2): twice the leaves in common, and the leaves that only one side has."""
    rows: list[tuple[int, int]] = []
    for output, reference in zip(outputs, references, strict=True):
        given, wanted = read(output).pairs, read(reference).pairs
        common = (given & wanted).total()
        rows.append((2 * common, given.total() + wanted.total() - 2 * common))
    return np.array(rows, dtype=np.float64).reshape(-1, 2)


def _micro_f1(sums: Floats) -> Floats:
    total = sums.sum(axis=1)
    return np.divide(sums[:, 0], total, out=np.ones(len(sums)), where=total > 0)


def _grader(name: str, read: Read, prose: Sequence[str]) -> Grader:
    metrics = ("valid", "exact", "f1", *(f"chrf:{path}" for path in prose))
    f1 = CorpusMetric("f1", partial(_counts, read), _micro_f1)
    return Grader(name, metrics, "exact", partial(_grade, read), (f1,))


def json_grader(prose: Sequence[str] = ()) -> Grader:
    """JSON: `valid`, `exact` of the parsed value, micro `f1` of (path, value), `chrf:PATH`.

    The whole answer has to be one object or array: a program that reads it would not look for it
    between other words. Items of an array count for `f1` in any order, for `exact` in theirs.
    """
    return _grader("json", partial(read_json, prose=frozenset(prose)), prose)


CALLS = _grader("calls", read_calls, ("content",))
"""Function calls: `valid`, `exact` of the calls, micro `f1` of names and arguments, and
`chrf:content` of the text beside them where the reference has some."""
