"""The best and most diverse rows of a file, and why the others were left."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans

from tunesmith.data.likeness import Vectors, nearest

REGION = 200
"""Rows of a region: larger strata are divided by k-means, since picking takes their square."""
COPY = 0.9


@dataclass(frozen=True, slots=True)
class Selection:
    """Places of the kept rows in their order, and of the left ones each with its reason."""

    kept: tuple[int, ...]
    left: Mapping[int, str]


def select(
    vectors: Vectors,
    count: int,
    *,
    where: Sequence[str],
    labels: Sequence[str] | None,
    suspects: Mapping[int, str],
    seed: int,
) -> Selection:
    """`count` rows: sound ones first, spread over labels and over what is asked.

    Every label has its share of the rows, and one at least while there is room. Within a label, or
    within a region of k-means where the answers are no labels, rows are taken one by one, each the one
    that raises the sum over all rows of the cosine to their nearest taken row most (facility location;
    greedy is within 1 - 1/e of the best, Nemhauser et al. 1978). The same seed, the same rows.

    Args:
        suspects: rows that something speaks against, with the reason; taken only where there are too
            few others.
    """
    sound = [place for place in range(len(vectors)) if place not in suspects]
    doubtful = [place for place in range(len(vectors)) if place in suspects]
    kept = _spread(vectors, sound, min(count, len(sound)), labels, seed)
    kept += _spread(vectors, doubtful, min(count - len(kept), len(doubtful)), labels, seed)
    kept.sort()
    taken = set(kept)
    others = [place for place in range(len(vectors)) if place not in taken]
    found, cosines = nearest(vectors[others], vectors[kept], 1)
    left: dict[int, str] = {}
    for row, place in enumerate(others):
        if place in suspects:
            left[place] = suspects[place]
            continue
        cosine, other = float(cosines[row, 0]), where[kept[found[row, 0]]]
        stands = "asks nearly what it asks" if cosine >= COPY else "is the nearest to it"
        left[place] = f"{other} was kept and {stands} (cosine {cosine:.2f})"
    return Selection(tuple(kept), left)


def _spread(
    vectors: Vectors, places: Sequence[int], count: int, labels: Sequence[str] | None, seed: int
) -> list[int]:
    strata: dict[str, list[int]] = defaultdict(list)
    for place in places:
        strata[labels[place] if labels else ""].append(place)
    kept: list[int] = []
    parts = [strata[name] for name in sorted(strata)]
    for members, quota in zip(parts, shares([len(part) for part in parts], count), strict=True):
        regions = _regions(vectors, members, seed)
        for region, some in zip(regions, shares([len(r) for r in regions], quota), strict=True):
            kept += [region[i] for i in facility_location(vectors[region], some)]
    return kept


def shares(sizes: Sequence[int], count: int) -> list[int]:
    """`count` divided over strata by their sizes, one each first, the largest first where there are
    too few; never more than a stratum has.
    """
    out = [0] * len(sizes)
    by_size = sorted(range(len(sizes)), key=lambda i: (-sizes[i], i))
    for i in by_size[:count]:
        out[i] = 1
    total = sum(sizes)
    for _ in range(count - sum(out)):
        # Who is farthest behind its share gets the next one.
        behind = [
            size * count / total - n if n < size else -np.inf
            for size, n in zip(sizes, out, strict=True)
        ]
        out[int(np.argmax(behind))] += 1
    return out


def _regions(vectors: Vectors, members: list[int], seed: int) -> list[list[int]]:
    if len(members) <= 2 * REGION:
        return [members]
    means = KMeans(len(members) // REGION, random_state=seed)
    regions = means.fit_predict(vectors[members])
    parts = [[members[i] for i in np.flatnonzero(regions == r)] for r in range(regions.max() + 1)]
    return [part for part in parts if part]


def facility_location(vectors: Vectors, count: int) -> list[int]:
    """Rows taken greedily so that all rows are near a taken one; the first is the most central."""
    like: NDArray[np.float32] = np.maximum(vectors @ vectors.T, 0)
    covered = np.zeros(len(vectors), np.float32)
    taken: list[int] = []
    for _ in range(count):
        gain = np.maximum(like - covered, 0).sum(axis=1)
        gain[taken] = -1
        taken.append(int(gain.argmax()))
        covered = np.maximum(covered, like[taken[-1]])
    return taken
