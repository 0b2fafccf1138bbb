"""What a row is known by: a digest for exact copies, a MinHash signature for near ones.

An example costs 16 bytes of digest and 128 bytes of signature. The signature is MinHash (Broder
1997) over five-character shingles of the normalised user text and answer, found again by banding
(Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, chapter 3).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rensa import RMinHash  # pyright: ignore[reportAttributeAccessIssue]
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from tunesmith.chat import Message, Tool, answer_text
from tunesmith.data.examples import Conversation, Dialogue, Document, Example, Preference

PERMUTATIONS = 32
_BANDS, _BAND = 8, 4
_SAME = 25  # of 32 permutations: an estimated Jaccard similarity of 0.78
_SHINGLE = 5
_FEW = 20
_BATCH = 2048
_NOT_WORDS = re.compile(r"[\W_]+")
_POWERS = [pow(0x9E3779B97F4A7C15, power, 1 << 64) for power in range(_SHINGLE)]

Signatures = NDArray[np.uint32]  # (examples, PERMUTATIONS)
Keys = NDArray[np.uint64]


def digest(example: Example) -> bytes:
    """16 bytes that two examples share when they teach the same: file, line and ids apart."""
    parts: list[Any] = [type(example).__name__]
    if isinstance(example, Document):
        parts.append(example.text)
    else:
        parts += _said(example)
    text = json.dumps(parts, ensure_ascii=False)
    return hashlib.blake2b(text.encode("utf-8"), digest_size=16).digest()


def _said(example: Dialogue) -> list[Any]:
    parts: list[Any] = [[_plain_tool(tool) for tool in example.tools]]
    if isinstance(example, Conversation):
        parts.append([_plain(message) for message in example.messages])
    else:
        parts += [
            [_plain(message) for message in turns] for turns in (example.prompt, *_answers(example))
        ]
        parts.append(None if isinstance(example, Preference) else example.label)
    return parts


def prompt_text(example: Example) -> str:
    """What the answer answers: every turn before it but the system's, with its role.

    A document answers nothing: its text is what it is known by.
    """
    if isinstance(example, Document):
        return example.text
    return "\x1e".join(
        f"{message.role}\x1f{answer_text(message)}"
        for message in example.prompt
        if message.role != "system"
    )


def prompt_key(example: Example, *, normal: bool = False) -> int:
    """64 bits of the prompt's text; `normal` passes over case and punctuation."""
    text = prompt_text(example)
    text = _normal(text) if normal else " ".join(text.split())
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "little")


class Signer:
    """Makes signatures; shingles that more than half of a sample has (templates) do not count."""

    def __init__(self, sample: Iterable[Example] = ()) -> None:
        self._common: Keys = np.zeros(0, np.uint64)
        texts = [_body(example) for example in sample]
        if len(texts) >= _FEW:
            hashes, ends = _shingles(texts)
            rows = np.split(hashes, ends[:-1].astype(np.int64))
            kinds, counts = np.unique(
                np.concatenate([np.unique(row) for row in rows]), return_counts=True
            )
            self._common = kinds[counts > len(texts) / 2]

    def sign(self, examples: Iterable[Example]) -> Signatures:
        """One signature an example, shape (examples, 32)."""
        parts = [np.zeros((0, PERMUTATIONS), np.uint32)]
        parts.extend(self._batch(batch) for batch in _batches(examples))
        return np.concatenate(parts)

    def _batch(self, examples: Sequence[Example]) -> Signatures:
        hashes, ends = _shingles([_body(example) for example in examples])
        if self._common.size:
            kept = ~np.isin(hashes, self._common)
            starts = np.concatenate([[0], ends[:-1]]).astype(np.int64)
            lengths = np.diff(np.concatenate([[0], ends])).astype(np.int64)
            empty = np.add.reduceat(kept, starts) == 0
            kept |= np.repeat(empty, lengths)
            ends = np.add.reduceat(kept, starts).cumsum()
            hashes = hashes[kept]
        offsets = np.concatenate([[0], ends]).astype(np.uint64)
        matrix = RMinHash.digest_matrix_from_flat_token_hashes(
            hashes, offsets, num_perm=PERMUTATIONS, seed=1
        )
        return np.array(matrix.to_rows(), dtype=np.uint32).reshape(-1, PERMUTATIONS)


def group(
    signatures: Signatures, prompts: Keys, rows: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """The group of each example: near-duplicates, and examples with the same normalised prompt.

    Pieces of one row, which have the same number in `rows`, belong together as well.

    A prompt that more than half of the examples have (and at least 20) says nothing about them
    and joins nobody: where every row asks the same, its answer is what tells it from others.
    """
    count = len(signatures)
    labels = np.arange(count, dtype=np.int64)
    if count < 2:
        return labels
    if rows is not None:
        _, first, member = np.unique(rows, return_index=True, return_inverse=True)
        labels = first[member].astype(np.int64)
    order = np.argsort(prompts, kind="stable")
    firsts = _run_starts(prompts[order])
    lengths = np.diff(np.append(np.flatnonzero(firsts == np.arange(count)), count))
    runs = np.repeat(lengths, lengths)
    firsts = np.where(runs > max(count / 2, _FEW - 1), np.arange(count), firsts)
    labels = _joined(labels, order, order[firsts])
    for band in range(_BANDS):
        keys = _band_keys(signatures, band)
        order = np.argsort(keys, kind="stable")
        firsts = _run_starts(keys[order])
        before = np.maximum(np.arange(count) - 1, firsts)
        for others in (firsts, before):
            left, right = order, order[others]
            differ = labels[left] != labels[right]
            left, right = left[differ], right[differ]
            near = _near(signatures, left, signatures, right)
            labels = _joined(labels, left[near], right[near])
    return labels


def nearest(left: Signatures, right: Signatures) -> NDArray[np.int64]:
    """For each of `left` the index of a near-duplicate in `right`, or -1."""
    found = np.full(len(left), -1, np.int64)
    for band in range(_BANDS if len(right) else 0):
        keys = _band_keys(right, band)
        order = np.argsort(keys, kind="stable")
        wanted = _band_keys(left, band)
        start = np.searchsorted(keys[order], wanted)
        for step in range(4):
            at = np.minimum(start + step, len(order) - 1)
            open_ = np.flatnonzero((keys[order[at]] == wanted) & (found < 0))
            partners = order[at[open_]]
            near = _near(left, open_, right, partners)
            found[open_[near]] = partners[near]
    return found


def mixed(keys: Keys, seed: int = 0) -> Keys:
    """SplitMix64's finaliser: a fixed random-looking order for any seed."""
    out = keys + np.uint64((seed * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) % (1 << 64))
    out = (out ^ (out >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    out = (out ^ (out >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return out ^ (out >> np.uint64(31))


def _answers(example: Dialogue) -> tuple[tuple[Message, ...], ...]:
    if isinstance(example, Conversation):
        return ((example.answer,),)
    if isinstance(example, Preference):
        return example.chosen, example.rejected
    return (example.completion,)


def _plain(message: Message) -> list[Any]:
    plain: list[Any] = [message.role, message.content]
    if message.role == "assistant" and (message.weight not in (None, 1.0) or message.tool_calls):
        plain.append(message.weight)
    if message.name is not None:
        plain.append({"name": message.name})
    plain.extend([call.name, _sorted(json.loads(call.arguments))] for call in message.tool_calls)
    return plain


def _plain_tool(tool: Tool) -> str:
    return _sorted(dict(tool))


def _sorted(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _normal(text: str) -> str:
    folded = text.casefold()
    return _NOT_WORDS.sub(" ", folded).strip() or folded


def _body(example: Example) -> str:
    if isinstance(example, Document):
        text = example.text
    else:
        turns = [message for message in example.prompt if message.role != "system"]
        turns.extend(_answers(example)[0])
        text = "\n".join(answer_text(turn) for turn in turns)
    return f" {_normal(text)} ".ljust(_SHINGLE)


def _shingles(texts: Sequence[str]) -> tuple[Keys, NDArray[np.int64]]:
    """The hashes of all shingles of all texts, and where each text's end."""
    lengths = np.array([len(text) for text in texts], np.int64)
    codes = np.frombuffer("".join(texts).encode("utf-32-le"), np.uint32).astype(np.uint64)
    size = len(codes) - _SHINGLE + 1
    hashes = np.zeros(size, np.uint64)
    for place, power in enumerate(_POWERS):
        hashes += codes[place : place + size] * np.uint64(power)
    whole = np.ones(len(codes), bool)
    ends = lengths.cumsum()
    for back in range(1, _SHINGLE):
        whole[ends - back] = False
    return mixed(hashes[whole[:size]]), (lengths - _SHINGLE + 1).cumsum()


def _batches(examples: Iterable[Example]) -> Iterator[list[Example]]:
    iterator = iter(examples)
    while batch := list(islice(iterator, _BATCH)):
        yield batch


def _band_keys(signatures: Signatures, band: int) -> Keys:
    part = signatures[:, band * _BAND : (band + 1) * _BAND].astype(np.uint64)
    high = mixed((part[:, 0] << np.uint64(32)) | part[:, 1])
    return mixed(high ^ ((part[:, 2] << np.uint64(32)) | part[:, 3]))


def _run_starts(ordered: Keys) -> NDArray[np.int64]:
    """For each place in a sorted array the place where its run of equal values starts."""
    places = np.arange(len(ordered))
    new = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    return np.maximum.accumulate(np.where(new, places, 0))


def _near(
    a: Signatures, left: NDArray[np.int64], b: Signatures, right: NDArray[np.int64]
) -> NDArray[np.bool_]:
    near = np.zeros(len(left), bool)
    for start in range(0, len(left), 1 << 16):
        part = slice(start, start + (1 << 16))
        near[part] = (a[left[part]] == b[right[part]]).sum(axis=1) >= _SAME
    return near


def _joined(
    labels: NDArray[np.int64], left: NDArray[np.int64], right: NDArray[np.int64]
) -> NDArray[np.int64]:
    if not len(left):
        return labels
    count = len(labels)
    edges = coo_array((np.ones(len(left), bool), (labels[left], labels[right])), (count, count))
    return connected_components(edges, directed=False)[1].astype(np.int64)[labels]
