from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from tunesmith.checks.selection import REGION, facility_location, select, shares
from tunesmith.data.likeness import Vectors


def unit(rows: int, seed: int = 0, width: int = 8) -> Vectors:
    vectors = np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def names(count: int) -> list[str]:
    return [f"rows.jsonl:{line}" for line in range(1, count + 1)]


@pytest.mark.parametrize(
    ("sizes", "count", "expected"),
    [
        ([90, 9, 1], 10, [8, 1, 1]),
        ([50, 50], 3, [2, 1]),
        ([5, 7, 1], 2, [1, 1, 0]),
        ([2, 2], 4, [2, 2]),
        ([10], 0, [0]),
        ([], 0, []),
    ],
)
def test_every_stratum_has_one_row_first_and_then_its_share(
    sizes: list[int], count: int, expected: list[int]
) -> None:
    assert shares(sizes, count) == expected


def test_greedy_facility_location_is_near_the_best_of_all_choices() -> None:
    vectors = unit(12)
    like = np.maximum(vectors @ vectors.T, 0)

    def worth(rows: tuple[int, ...]) -> float:
        return float(like[list(rows)].max(axis=0).sum())

    best = max(worth(rows) for rows in combinations(range(12), 3))
    assert worth(tuple(facility_location(vectors, 3))) >= (1 - 1 / np.e) * best
    assert sorted(facility_location(vectors, 12)) == list(range(12))


def test_suspects_are_left_while_there_are_others_and_each_left_row_has_its_reason() -> None:
    vectors, where = unit(40), names(40)
    suspects = {3: "labels: wrong", 5: "outliers: far"}
    found = select(vectors, 10, where=where, labels=None, suspects=suspects, seed=0)
    assert len(found.kept) == 10
    assert sorted([*found.kept, *found.left]) == list(range(40))
    assert not {3, 5} & set(found.kept)
    assert found.left[3] == "labels: wrong"
    assert all("was kept" in why for place, why in found.left.items() if place not in suspects)
    assert found == select(vectors, 10, where=where, labels=None, suspects=suspects, seed=0)
    most = select(vectors, 39, where=where, labels=None, suspects=suspects, seed=0)
    assert len({3, 5} & set(most.kept)) == 1
    every = select(vectors, 99, where=where, labels=None, suspects=suspects, seed=0)
    assert (len(every.kept), every.left) == (40, {})


def test_every_label_is_kept_before_any_has_a_second_row() -> None:
    labels = [f"label {n % 5 if n < 10 else 0}" for n in range(60)]
    found = select(unit(60), 5, where=names(60), labels=labels, suspects={}, seed=0)
    assert {labels[place] for place in found.kept} == set(labels)


def test_many_rows_are_divided_into_regions_and_copies_are_named_as_such() -> None:
    base = unit(3 * REGION)
    vectors = np.repeat(base, 2, axis=0)
    count = len(vectors)
    found = select(vectors, 300, where=names(count), labels=None, suspects={}, seed=1)
    assert len(found.kept) == 300
    twins = [place for place in found.left if place ^ 1 in found.kept]
    assert len(twins) > 250
    assert all("asks nearly what it asks" in found.left[place] for place in twins)
