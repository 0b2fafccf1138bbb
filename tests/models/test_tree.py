from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.models.template import Chain
from tunesmith.models.tree import PackedBatch, Segment, plant, segments, visible


def chain(prompt: list[int], answer: list[int]) -> Chain:
    return Chain((*prompt, *answer), (False,) * len(prompt) + (True,) * len(answer))


def path_to(batch: PackedBatch, place: int) -> list[int]:
    path: list[int] = []
    while place >= 0:
        path.append(place)
        place = int(batch.parent[place])
    return path[::-1]


@st.composite
def families(draw: st.DrawFn) -> list[Chain]:
    """Chains with common beginnings of many lengths: around the limits of sharing, and nested."""
    trunk = draw(st.lists(st.integers(0, 3), min_size=0, max_size=60))
    out: list[Chain] = []
    for _ in range(draw(st.integers(1, 8))):
        kept = draw(st.integers(0, len(trunk)))
        own = draw(st.lists(st.integers(0, 3), min_size=1, max_size=12))
        answer = draw(st.lists(st.integers(0, 3), min_size=1, max_size=6))
        out.append(chain(trunk[:kept] + own, answer))
    return out


def test_a_prompt_with_two_branches_worked_by_hand() -> None:
    root = list(range(100, 140))
    batch = plant([chain([*root, 1], [2]), chain([*root, 3, 4], [5])])
    assert batch.ids.tolist() == [*root, 1, 2, 3, 4, 5]
    assert batch.parent.tolist() == [-1, *range(39), 39, 40, 39, 42, 43]
    assert batch.exit.tolist() == [45] * 40 + [42, 42, 45, 45, 45]
    assert batch.depth.tolist() == [*range(40), 40, 41, 40, 41, 42]
    assert batch.branch.tolist() == [-1] * 40 + [0, 0, 1, 1, 1]
    assert batch.trained.tolist() == [41, 44]
    assert segments(batch) == [Segment(0, 40, -1), Segment(40, 42, 0), Segment(42, 45, 0)]


def test_short_common_beginnings_stay_apart() -> None:
    # Seven common tokens are under the eight that are worth a node, however many rows have them.
    rows = [chain([9] * 7 + [row], [1]) for row in range(20)]
    assert plant(rows).size == sum(len(row.ids) for row in rows)


def test_cost_grows_with_distinct_tokens_not_with_rows_times_the_prompt() -> None:
    prompt = list(range(200))
    rows = [chain([*prompt, row], [1, 2]) for row in range(50)]
    assert plant(rows).size == 200 + 50 * 3


@given(families())
def test_every_chain_is_a_path_of_the_forest(chains: list[Chain]) -> None:
    batch = plant(chains)
    for index, row in enumerate(chains):
        path = path_to(batch, int(np.flatnonzero(batch.branch == index)[-1]))
        assert tuple(batch.ids[path].tolist()) == row.ids
        assert tuple(bool(x) for x in batch.weight[path]) == row.trained
        assert batch.depth[path].tolist() == list(range(len(row.ids)))


def test_rows_that_are_the_same_share_their_prompt_and_no_trained_token() -> None:
    batch = plant([chain(list(range(20)), list(range(50)))] * 4)
    assert batch.size == 20 + 4 * 50
    assert len(batch.trained) == 4 * 50
    assert (batch.branch[:20] == -1).all()
    # Nor where one row's answer is another's prompt.
    longer = plant([chain(list(range(10)), list(range(10, 60))), chain(list(range(60)), [1])] * 2)
    assert len(longer.trained) == 2 * 50 + 2
    assert (longer.branch[longer.trained] >= 0).all()


@given(families())
def test_a_trained_token_belongs_to_exactly_one_branch(chains: list[Chain]) -> None:
    batch = plant(chains)
    assert len(batch.trained) == sum(row.trained_count for row in chains)
    assert (batch.branch[batch.trained] >= 0).all()
    counts = np.bincount(batch.branch[batch.trained], minlength=len(chains))
    assert counts.tolist() == [row.trained_count for row in chains]


@given(families())
def test_a_query_sees_a_key_exactly_when_the_key_is_on_its_path(chains: list[Chain]) -> None:
    batch = plant(chains)
    seen = visible(batch)
    for query in range(batch.size):
        assert np.flatnonzero(seen[query]).tolist() == path_to(batch, query)


@given(families())
def test_segments_cover_the_forest_and_name_the_run_above(chains: list[Chain]) -> None:
    batch = plant(chains)
    runs = segments(batch)
    assert [place for run in runs for place in range(run.start, run.end)] == list(range(batch.size))
    for run in runs:
        above = int(batch.parent[run.start])
        assert above == (runs[run.parent].end - 1 if run.parent >= 0 else -1)
        assert batch.parent[run.start + 1 : run.end].tolist() == list(range(run.start, run.end - 1))


@given(families())
def test_without_sharing_each_chain_stands_alone_in_its_order(chains: list[Chain]) -> None:
    batch = plant(chains, share=False)
    assert batch.ids.tolist() == [token for row in chains for token in row.ids]
    assert (batch.branch >= 0).all()


def test_trap_08_positions_restart_with_every_row() -> None:
    batch = plant([chain([1, 2, 3], [4]), chain([5, 6], [7])])
    assert batch.depth.tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert batch.parent[[0, 4]].tolist() == [-1, -1]


@pytest.mark.parametrize(
    ("size", "filled"), [(1, 16), (16, 16), (54, 64), (256, 256), (257, 272), (900, 928)]
)
def test_a_filled_batch_has_one_of_few_sizes_and_the_same_forest(size: int, filled: int) -> None:
    batch = plant([Chain(tuple(range(size)), (False,) + (True,) * (size - 1))])
    more = batch.filled()
    assert more.size == filled
    assert (more.trained == batch.trained).all()
    for name in ("ids", "parent", "exit", "depth", "weight", "branch"):
        assert (getattr(more, name)[:size] == getattr(batch, name)).all()
    # What fills it is a chain of its own, which no token of the batch sees or is seen by.
    own = range(size, filled)
    assert more.parent[size:].tolist() == [-1, *own][: len(own)]
    assert set(more.exit[size:].tolist()) <= {filled}
    assert more.depth[size:].tolist() == list(range(len(own)))
