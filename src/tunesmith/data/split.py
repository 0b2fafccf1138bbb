"""Training, validation and test rows, with near-duplicates on one side; and rows on disk."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tunesmith.chat import Message, ToolCall, to_openai
from tunesmith.data import fingerprint as _fingerprint
from tunesmith.data.dataset import Dataset
from tunesmith.data.examples import (
    Conversation,
    Document,
    Example,
    Preference,
    Rejected,
    Source,
    UnpairedPreference,
)
from tunesmith.errors import UsageError

Size = float | int | Literal["auto"] | Dataset
_Mask = NDArray[np.bool_]
_LISTED = 50


class Part:
    """Some examples of a dataset, in its order; can be iterated any number of times."""

    def __init__(self, dataset: Dataset, mask: _Mask) -> None:
        self._dataset, self._mask = dataset, mask
        self._count = int(mask.sum())

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Example]:
        return compress(self._dataset, self._mask) if self._count else iter(())


@dataclass(frozen=True)
class Split:
    """Three sets of examples; no group of near-duplicates is in two that were cut from one dataset.

    Attributes:
        train, validation, test: the examples; the user's own datasets stand as they are.
        leaked: source rows taken out of training because their prompt, or the whole row, stands in
            the user's own validation or test file.
        near_leaks: (training row, held-out row) where a near copy remains, the first 50.
        near_leaked: how many training examples have such a near copy.
    """

    train: Part
    validation: Part | Dataset
    test: Part | Dataset
    leaked: int
    near_leaks: tuple[tuple[Source, Source], ...]
    near_leaked: int
    _dataset: Dataset
    _held_out: tuple[Dataset, ...]

    def leaked_rows(self) -> Iterator[Rejected]:
        """The rows counted by `leaked`, read anew."""
        if self.leaked:
            yield from self._dataset.reject(_leaks(self._dataset, self._held_out))


def split(dataset: Dataset, *, validation: Size, test: Size, seed: int) -> Split:
    """Cut a dataset into training, validation and test rows.

    A group's side follows from the seed and what its rows say, not from their order. `auto` takes
    15 % (40 to 400) for the test and 10 % (20 to 200) for validation, and leaves half to train on.
    Passages of a running text are held out in one block at its end, validation before the test:
    picked at random they would stand between passages that are trained, and be too easy.

    Args:
        dataset: what there is.
        validation: a share below 1, a number of rows, 0 for none, `auto`, or the user's own.
        test: as validation.
        seed: of the order of groups.

    Raises:
        UsageError: a size that is negative, or leaves nothing to train on.
    """
    own = tuple(part for part in (validation, test) if isinstance(part, Dataset))
    free = np.ones(len(dataset), bool)
    leaks = _leaks(dataset, own) if own else {}
    if leaks:
        free = np.fromiter((row.source not in leaks for row in dataset), bool, len(dataset))
    want_validation, want_test = _sizes(int(free.sum()), validation, test)
    sides = _assign(dataset, free, (want_test, want_validation), seed)
    train = Part(dataset, sides == 0)
    near = _near_leaks(dataset, sides == 0, own)
    return Split(
        train,
        validation if isinstance(validation, Dataset) else Part(dataset, sides == 2),
        test if isinstance(test, Dataset) else Part(dataset, sides == 1),
        len(leaks),
        near[0],
        near[1],
        dataset,
        own,
    )


def _sizes(count: int, validation: Size, test: Size) -> tuple[int, int]:
    """Rows wanted for validation and test of `count`."""
    asked_validation = _asked("validation", validation, count)
    asked_test = _asked("test", test, count)
    want_validation = (
        min(200, max(20, count // 10)) if asked_validation is None else asked_validation
    )
    want_test = min(400, max(40, count * 15 // 100)) if asked_test is None else asked_test
    room = count // 2
    if asked_test is None and asked_validation is None and want_test + want_validation > room:
        want_test = want_test if count >= 100 else room * 2 // 3
        want_validation = room - want_test
    elif asked_test is None:
        want_test = max(min(want_test, room - want_validation), 0)
    elif asked_validation is None:
        want_validation = max(min(want_validation, room - want_test), 0)
    if want_test + want_validation >= count and want_test + want_validation > 0:
        raise UsageError(
            f"{want_test} test and {want_validation} validation rows of {count} leave none to train on",
            expected="sizes that leave rows to train on",
            remedy="Give smaller ones with --set data.test=N and --set data.validation=N.",
        )
    return want_validation, want_test


def _asked(name: str, size: Size, count: int) -> int | None:
    if size == "auto":
        return None
    if isinstance(size, Dataset):
        return 0
    if size < 0:
        raise UsageError(
            f"data.{name} is {size}", expected="a share below 1, a number of rows, or 0"
        )
    return round(size * count) if 0 < size < 1 else int(size)


def _assign(dataset: Dataset, free: _Mask, wanted: tuple[int, ...], seed: int) -> NDArray[np.int8]:
    """The side of each example: 0 train, 1 and on the held-out sides of these sizes, -1 none."""
    sides = np.where(free, 0, -1).astype(np.int8)
    count = int(free.sum())
    if not any(wanted):
        return sides
    groups = np.unique(dataset.groups[free], return_inverse=True)[1]
    sizes = np.bincount(groups)
    # A group is known by the least digest in it, whatever the order of its rows.
    keys = np.full(len(sizes), np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(keys, groups, dataset.digests[free, 0])
    order = np.argsort(_turns(dataset.places[free], groups, keys, seed), kind="stable").tolist()
    chosen = np.zeros(len(sizes), np.int8)
    left = count
    for side, want in enumerate(wanted, 1):
        got = 0
        for index in order:
            if got == want:
                break
            if not chosen[index] and sizes[index] <= want - got:
                chosen[index] = side
                got += int(sizes[index])
        rest = [index for index in order if not chosen[index]]
        least = min(rest, key=lambda index: sizes[index], default=None)
        if got < want and least is not None and left - got - sizes[least] >= count / 2:
            chosen[least] = side
            got += int(sizes[least])
        left -= got
    sides[free] = chosen[groups]
    return sides


def _turns(
    places: NDArray[np.float64], groups: NDArray[np.int64], keys: NDArray[np.uint64], seed: int
) -> NDArray[np.uint64]:
    """When each group is held out, the least first: at random, and running texts from their end.

    Both are even over the whole range, so that texts and rows beside them give equal shares.
    """
    turns = _fingerprint.mixed(keys, seed)
    running = np.flatnonzero(~np.isnan(places))
    latest = np.zeros(len(keys))
    np.maximum.at(latest, groups[running], places[running])
    ends = np.flatnonzero(latest)
    turns[ends] = ((1 - latest[ends]) * float(1 << 63)).astype(np.uint64) << np.uint64(1)
    return turns


def _leaks(dataset: Dataset, held_out: Iterable[Dataset]) -> dict[Source, str]:
    """Training rows whose prompt stands in a held-out dataset, with the reason to take them out."""
    kept: dict[int, Source] = {}
    for part in held_out:
        for example in part:
            kept.setdefault(_fingerprint.prompt_key(example), example.source)
    out: dict[Source, str] = {}
    for example in dataset:
        source = kept.get(_fingerprint.prompt_key(example))
        if source is not None:
            what = "text" if isinstance(example, Document) else "prompt"
            out[example.source] = (
                f"its {what} stands in {source.file}:{source.line}, which is held out; training on "
                "it would make the comparison worthless"
            )
    return out


def _near_leaks(
    dataset: Dataset, train: _Mask, held_out: tuple[Dataset, ...]
) -> tuple[tuple[tuple[Source, Source], ...], int]:
    total = 0
    listed: list[tuple[Source, Source]] = []
    places = np.flatnonzero(train)
    for part in held_out:
        found = _fingerprint.nearest(dataset.signatures[places], dataset.signer.sign(part))
        near = np.flatnonzero(found >= 0)
        total += len(near)
        near = near[: _LISTED - len(listed)]
        ours = _sources(dataset, places[near])
        theirs = _sources(part, found[near])
        listed.extend(
            (ours[mine], theirs[yours])
            for mine, yours in zip(places[near].tolist(), found[near].tolist(), strict=True)
        )
    return tuple(listed), total


def _sources(dataset: Dataset, indices: NDArray[np.int64]) -> dict[int, Source]:
    wanted = set(indices.tolist())
    if not wanted:
        return {}
    return {index: row.source for index, row in enumerate(dataset) if index in wanted}


def write_jsonl(examples: Iterable[Example], path: Path) -> int:
    """Write examples one a line with their source; the number written.

    Demonstrations take OpenAI's chat form, pairs its preference form, rated answers
    {"prompt", "completion", "label"}, documents {"text", "ends"}.
    """
    count = 0
    with path.open("w", encoding="utf-8", newline="\n") as out:
        for example in examples:
            out.write(json.dumps(_record(example), ensure_ascii=False) + "\n")
            count += 1
    return count


def read_jsonl(path: Path) -> Iterator[Example]:
    """The inverse of `write_jsonl`; the file is trusted to be the run's own."""
    with path.open(encoding="utf-8", newline="\n") as lines:
        for line in lines:
            yield _example(json.loads(line))


def _record(example: Example) -> dict[str, Any]:
    source = {"file": example.source.file, "line": example.source.line}
    if isinstance(example, Document):
        return {"text": example.text, "ends": example.ends, "source": source}
    tools = {"tools": [dict(tool) for tool in example.tools]} if example.tools else {}
    if isinstance(example, Conversation):
        named = {"document": example.document} if example.document else {}
        return {"messages": _written(example.messages), **tools, **named, "source": source}
    if isinstance(example, Preference):
        return {
            "input": {"messages": _written(example.prompt), **tools},
            "preferred_output": _written(example.chosen),
            "non_preferred_output": _written(example.rejected),
            "source": source,
        }
    return {
        "prompt": _written(example.prompt),
        "completion": _written(example.completion),
        "label": example.label,
        **tools,
        "source": source,
    }


def _example(record: Mapping[str, Any]) -> Example:
    source = Source(**record["source"])
    if "text" in record:
        return Document(record["text"], source, record["ends"])
    if "messages" in record:
        tools = tuple(record.get("tools", ()))
        return Conversation(
            _read(record["messages"]), source, tools, str(record.get("document", ""))
        )
    if "input" in record:
        prompt = record["input"]
        return Preference(
            _read(prompt["messages"]),
            _read(record["preferred_output"]),
            _read(record["non_preferred_output"]),
            source,
            tuple(prompt.get("tools", ())),
        )
    return UnpairedPreference(
        _read(record["prompt"]),
        _read(record["completion"]),
        record["label"],
        source,
        tuple(record.get("tools", ())),
    )


def _written(messages: Iterable[Message]) -> list[dict[str, Any]]:
    return [to_openai(message) for message in messages]


def _read(messages: Iterable[Mapping[str, Any]]) -> tuple[Message, ...]:
    return tuple(
        Message(
            message["role"],
            message["content"],
            message.get("name"),
            tuple(
                ToolCall(call["id"], call["function"]["name"], call["function"]["arguments"])
                for call in message.get("tool_calls", ())
            ),
            message.get("tool_call_id"),
            message.get("weight"),
        )
        for message in messages
    )
