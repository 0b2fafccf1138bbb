from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tunesmith.models.template import Chain
from tunesmith.train.pack import pack

chains = st.lists(
    st.builds(
        lambda shared, own, answer: Chain(
            (7,) * shared + tuple(own) + (1,) * answer,
            (False,) * (shared + len(own)) + (True,) * answer,
        ),
        st.integers(0, 40),
        st.lists(st.integers(0, 3), min_size=1, max_size=20),
        st.integers(1, 9),
    ),
    min_size=1,
    max_size=20,
)


@given(chains, st.integers(20, 200), st.booleans())
def test_every_trained_token_is_in_one_batch_of_bounded_size(
    rows: list[Chain], limit: int, share: bool
) -> None:
    batches = pack(rows, max_tokens=limit, share=share)
    assert sum(len(batch.trained) for batch in batches) == sum(row.trained_count for row in rows)
    # Larger than the limit only where a single chain is.
    assert all(batch.size <= limit or not batch.branch.any() for batch in batches)


def test_no_rows_are_no_batches() -> None:
    assert pack([], max_tokens=8) == []


def test_rows_that_begin_alike_stay_together() -> None:
    rows = [
        Chain((root,) * 50 + (tail, 9), (False,) * 51 + (True,))
        for tail in range(4)
        for root in (1, 2)
    ]
    batches = pack(rows, max_tokens=80)
    assert [batch.size for batch in batches] == [58, 58]


def test_without_sharing_each_row_keeps_its_own_tokens() -> None:
    rows = [Chain((1,) * 50 + (tail, 9), (False,) * 51 + (True,)) for tail in range(4)]
    assert sum(batch.size for batch in pack(rows, max_tokens=1000, share=False)) == 4 * 52
    assert sum(batch.size for batch in pack(rows, max_tokens=1000)) == 50 + 4 * 2
