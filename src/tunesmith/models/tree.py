"""Every batch is a forest: chains of tokens merged where they begin alike, laid out in preorder.

Token j's subtree is the interval [j, exit[j]), so key kv is visible to query q exactly when
kv <= q < exit[kv]; its position is its depth, and its log-probability is read from the logits at
parent[j]. Only untrained tokens are shared: a trained token belongs to exactly one chain, so no
gradient is counted twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

MIN_SHARED = 8
"""Shorter common runs are not worth a node of their own."""
MIN_SAVED = 32
"""Nor are runs that save fewer tokens than this, all branches together."""

Ints = NDArray[np.int64]


class Path(Protocol):
    """What is packed: the ids of one path from the root and which of them are trained."""

    @property
    def ids(self) -> tuple[int, ...]:
        """Token ids from the root on."""
        ...

    @property
    def trained(self) -> tuple[bool, ...]:
        """Which of them carry loss."""
        ...


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """One forest; every array has length T, the number of distinct tokens.

    ids: token ids. parent: index of the token before, -1 at a root. exit: end of the subtree.
    depth: tokens before it on its path. weight: its share in the loss, 0 where untrained.
    branch: index of the chain that it belongs to, -1 where chains share it.
    """

    ids: Ints
    parent: Ints
    exit: Ints
    depth: Ints
    weight: NDArray[np.float32]
    branch: Ints

    @property
    def size(self) -> int:
        """Distinct tokens."""
        return len(self.ids)

    @property
    def trained(self) -> Ints:
        """Indices of the trained tokens, ascending."""
        return np.flatnonzero(self.weight)

    def filled(self) -> PackedBatch:
        """With a chain of zeros behind it that nothing is trained on, so that few sizes occur: sixteen
        from one power of two to the next, at most a sixteenth more.

        A library that compiles a product for each of its shapes takes time and memory for every new
        size.
        """
        step = max(16, 1 << (self.size.bit_length() - 1) >> 4)
        more = -self.size % step
        if not more:
            return self
        places = np.arange(more)
        end = self.size + more
        return PackedBatch(
            ids=np.append(self.ids, np.zeros(more, np.int64)),
            parent=np.append(self.parent, np.where(places == 0, -1, self.size + places - 1)),
            exit=np.append(self.exit, np.full(more, end)),
            depth=np.append(self.depth, places),
            weight=np.append(self.weight, np.zeros(more, np.float32)),
            branch=np.append(self.branch, np.full(more, -1)),
        )


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of tokens without a fork: [start, end), below the segment `parent` (-1 at a root)."""

    start: int
    end: int
    parent: int

    @property
    def length(self) -> int:
        """Tokens in the run."""
        return self.end - self.start


class _Layout:
    """Arrays under construction."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.parent: list[int] = []
        self.exit: list[int] = []
        self.depth: list[int] = []
        self.weight: list[float] = []
        self.branch: list[int] = []

    def add(self, ids: Sequence[int], trained: Sequence[bool], parent: int, branch: int) -> int:
        """Append a run below `parent`; the index of its last token."""
        for token, on in zip(ids, trained, strict=True):
            self.depth.append(self.depth[parent] + 1 if parent >= 0 else 0)
            self.parent.append(parent)
            parent = len(self.ids)
            self.ids.append(token)
            self.exit.append(0)
            self.weight.append(1.0 if on else 0.0)
            self.branch.append(branch)
        return parent

    def close(self, first: int) -> None:
        """The run that began at `first` has no more descendants."""
        end = len(self.ids)
        for place in range(first, end):
            if self.exit[place] == 0:
                self.exit[place] = end


def plant(chains: Sequence[Path], *, share: bool = True) -> PackedBatch:
    """Merge chains into a forest.

    Args:
        chains: paths from the root; chain i becomes branch i.
        share: False lays out each chain by itself, for models that cannot share.
    """
    layout = _Layout()
    order = sorted(range(len(chains)), key=lambda index: chains[index].ids)
    if share:
        _grow(layout, chains, order, at=0, parent=-1)
    else:
        for index in range(len(chains)):
            _leaf(layout, chains, index, at=0, parent=-1)
    return PackedBatch(
        ids=np.array(layout.ids, dtype=np.int64),
        parent=np.array(layout.parent, dtype=np.int64),
        exit=np.array(layout.exit, dtype=np.int64),
        depth=np.array(layout.depth, dtype=np.int64),
        weight=np.array(layout.weight, dtype=np.float32),
        branch=np.array(layout.branch, dtype=np.int64),
    )


def _grow(
    layout: _Layout, chains: Sequence[Path], members: Sequence[int], *, at: int, parent: int
) -> None:
    """Lay out chains that agree on their first `at` tokens, whose last stands at `parent`."""
    for family in _families(chains, members, at):
        length = _common(chains, family, at) if len(family) > 1 else 0
        if length >= MIN_SHARED and length * (len(family) - 1) >= MIN_SAVED:
            first = len(layout.ids)
            run = chains[family[0]].ids[at : at + length]
            last = layout.add(run, [False] * length, parent, branch=-1)
            _grow(layout, chains, family, at=at + length, parent=last)
            layout.close(first)
        else:
            for index in family:
                _leaf(layout, chains, index, at=at, parent=parent)


def _leaf(layout: _Layout, chains: Sequence[Path], index: int, *, at: int, parent: int) -> None:
    first, chain = len(layout.ids), chains[index]
    layout.add(chain.ids[at:], chain.trained[at:], parent, branch=index)
    layout.close(first)


def _families(chains: Sequence[Path], members: Sequence[int], at: int) -> list[list[int]]:
    """Members grouped by a long enough common run; the order of `members` (sorted) is kept."""
    families: list[list[int]] = []
    for index in members:
        if families and _common(chains, [families[-1][0], index], at) >= MIN_SHARED:
            families[-1].append(index)
        else:
            families.append([index])
    return families


def _common(chains: Sequence[Path], family: Sequence[int], at: int) -> int:
    """Tokens after `at` on which the family agrees, none of them trained in any."""
    # Sorted members: what the first and the last agree on, all between agree on.
    first, last = chains[family[0]], chains[family[-1]]
    untrained = min(_untrained(chains[index]) for index in family)
    end = min(len(first.ids), len(last.ids), untrained)
    place = at
    while place < end and first.ids[place] == last.ids[place]:
        place += 1
    return place - at


def _untrained(chain: Path) -> int:
    """Tokens before the first trained one, which shared tokens have to be among.

    The last of a chain's tokens is never shared, so that each chain owns at least one.
    """
    try:
        return chain.trained.index(True)
    except ValueError:
        return len(chain.ids) - 1


def segments(batch: PackedBatch) -> list[Segment]:
    """The forest as runs without forks, in preorder."""
    size = batch.size
    children = np.bincount(batch.parent[batch.parent >= 0], minlength=size)
    before = np.arange(size) - 1
    begins = (batch.parent != before) | (children[before] > 1) | (before < 0)
    starts = np.flatnonzero(begins)
    ends = np.append(starts[1:], size)
    place = np.cumsum(begins) - 1
    return [
        Segment(
            int(start),
            int(end),
            int(place[batch.parent[start]]) if batch.parent[start] >= 0 else -1,
        )
        for start, end in zip(starts, ends, strict=True)
    ]


def visible(batch: PackedBatch) -> NDArray[np.bool_]:
    """The T x T mask [query, key] that the intervals stand for; only a reference for tests."""
    index = np.arange(batch.size)
    return (index[None, :] <= index[:, None]) & (index[:, None] < batch.exit[None, :])
