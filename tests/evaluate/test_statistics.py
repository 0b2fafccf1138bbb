from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from tunesmith.evaluate.statistics import (
    Floats,
    clopper_pearson,
    corpus_interval,
    furthest,
    interval,
    mcnemar_exact,
    newcombe_paired,
    paired,
    permutation_p,
    reach,
    wilson,
)


def alone(n: int) -> list[str]:
    return [str(i) for i in range(n)]


def mean(totals: Floats) -> Floats:
    return totals[:, 0] / totals[:, 1]


def with_ones(x: Floats) -> Floats:
    return np.stack([x, np.ones_like(x)], axis=1)


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [
        # the examples of Newcombe 1998, Statistics in Medicine 17, 857-872, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_is_the_published_interval(k: int, n: int, low: float, high: float) -> None:
    assert wilson(k, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(
    ("table", "low", "high"),
    [
        # Newcombe 1998, Statistics in Medicine 17, 2635-2650: examples, method 10
        ((36, 12, 2, 0), 0.0569, 0.3404),
        ((20, 12, 2, 16), 0.0562, 0.3292),
        # Bentur et al. 2009, as worked in Fagerland, Lydersen and Laake 2014
        ((1, 1, 7, 12), -0.507, -0.026),
    ],
)
def test_newcombe_is_the_published_interval(
    table: tuple[int, int, int, int], low: float, high: float
) -> None:
    assert newcombe_paired(*table) == pytest.approx((low, high), abs=5e-4)


@given(st.tuples(*[st.integers(0, 40)] * 4).filter(lambda table: sum(table) > 0))
def test_newcombe_contains_the_estimate_and_turns_with_the_arms(
    table: tuple[int, int, int, int],
) -> None:
    both, a, b, neither = table
    low, high = newcombe_paired(*table)
    assert -1 - 1e-9 <= low <= (a - b) / sum(table) <= high <= 1 + 1e-9
    assert newcombe_paired(both, b, a, neither) == pytest.approx((-high, -low))


def test_mcnemar_by_hand() -> None:
    # 1 of 6 rows that differ: 2 * (C(6,0) + C(6,1)) / 2^6 = 14/64
    assert mcnemar_exact(1, 5) == mcnemar_exact(5, 1) == pytest.approx(14 / 64)
    assert mcnemar_exact(3, 3) == mcnemar_exact(0, 0) == 1.0
    assert mcnemar_exact(0, 10) == pytest.approx(2 / 1024)


def test_sign_flips_by_hand() -> None:
    # |+-1 +-2 +-3| >= 6 for two of eight signs; zeros change nothing
    assert permutation_p(np.array([1.0, 2.0, 3.0])) == pytest.approx(2 / 8)
    assert permutation_p(np.array([1.0, 0.0, 2.0, 3.0, 0.0])) == pytest.approx(2 / 8)
    assert permutation_p(np.zeros(5)) == 1.0


def test_sign_flips_of_binary_differences_are_mcnemar() -> None:
    assert permutation_p(np.array([1.0] * 9 + [-1.0] * 3)) == pytest.approx(mcnemar_exact(9, 3))


def test_drawn_sign_flips_agree_with_all_of_them() -> None:
    p = permutation_p(np.array([1.0] * 20 + [-1.0] * 10))
    assert p == pytest.approx(mcnemar_exact(20, 10), abs=0.015)


@pytest.mark.parametrize("k", [0, 1, 7, 19, 20])
def test_clopper_pearson_is_scipys(k: int) -> None:
    theirs = binomtest(k, 20).proportion_ci(method="exact")
    assert clopper_pearson(k, 20) == pytest.approx((theirs.low, theirs.high))


@pytest.mark.parametrize("k", [0, 1, 7, 20])
def test_reach_of_zeros_and_ones_is_clopper_pearson(k: int) -> None:
    x = np.array([1.0] * k + [0.0] * (20 - k))
    ends = np.array([0.0, 1.0]), np.array([1.0, 1.0])
    found = reach(with_ones(x), mean, *ends)
    assert found == pytest.approx(clopper_pearson(k, 20), abs=0.01)


def test_reach_is_near_the_usual_interval_where_that_holds() -> None:
    x = np.random.default_rng(3).random(1000)
    half = 1.96 * x.std() / 1000**0.5
    found = reach(with_ones(x), mean, np.array([0.0, 1.0]), np.array([1.0, 1.0]))
    assert found == pytest.approx((x.mean() - half, x.mean() + half), abs=0.003)


@settings(max_examples=50)
@given(
    st.lists(st.floats(-5, 5, allow_subnormal=False), min_size=1, max_size=12),
    st.integers(1, 12),
)
def test_an_interval_always_contains_its_estimate(values: list[float], clusters: int) -> None:
    found = interval(values, [str(i % clusters) for i in range(len(values))])
    assert found.low <= found.value <= found.high
    assert found.value == pytest.approx(np.mean(values))
    assert found.n == len(values)
    against = paired(values, values[::-1], [str(i % clusters) for i in range(len(values))])
    assert against.low <= against.value <= against.high
    assert 0 < against.p <= 1


def test_what_was_not_seen_may_differ_from_values_that_are_all_equal() -> None:
    half = interval([0.5] * 9, alone(9))
    # 0.025 ** (1 / 9) of the weight is at least on the nine; the rest may be 0 or 1.
    assert half.low == pytest.approx(0.5 * 0.025 ** (1 / 9), abs=0.01)
    assert half.high == pytest.approx(1 - half.low, abs=0.02)
    assert interval([1.0] * 9, alone(9)).low == pytest.approx(0.025 ** (1 / 9))
    same = paired([0.5] * 40, [0.5] * 40, alone(40))
    assert (same.value, same.p) == (0.0, 1.0)
    assert same.high == pytest.approx(1 - 0.025 ** (1 / 40), abs=0.01)


def test_rows_to_come_may_differ_as_those_seen_or_where_little_was_seen_by_all() -> None:
    wide, near = np.array([0.1, 0.4, 0.8]), np.array([0.3, 0.4, 0.7])
    assert furthest(wide, near) == pytest.approx(0.2)
    assert furthest(wide, wide) == 1.0
    assert furthest(wide / 2, near / 2) == 1.0
    assert furthest(10 * wide, 10 * near) == pytest.approx(2.0)


def test_values_beyond_0_and_1_reach_as_far_as_those_that_were_seen() -> None:
    found = interval([-3.0, -1.0, -1.0, -2.0], alone(4))
    assert -3.0 <= found.low < -2.0 < -1.0 >= found.high
    assert interval([-2.0] * 4, alone(4)).low == interval([-2.0] * 4, alone(4)).high == -2.0


def test_the_interval_of_a_mean_covers_it_95_times_in_100() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(120):
        found = interval(rng.exponential(size=40).tolist(), alone(40), seed)
        hits += found.low <= 1.0 <= found.high
    assert 0.88 <= hits / 120 <= 0.99


def test_the_interval_of_a_paired_difference_covers_it_95_times_in_100() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(400):
        easy = rng.random(40)
        a = (easy < 0.8).astype(float)
        b = (0.6 * easy + 0.4 * rng.random(40) < 0.5).astype(float)
        found = paired(a.tolist(), b.tolist(), alone(40))
        hits += found.low <= 0.3 <= found.high
    assert 0.92 <= hits / 400 <= 0.99


def test_rows_said_twice_do_not_narrow_the_interval() -> None:
    x = np.random.default_rng(5).random(30)
    once = interval(x.tolist(), alone(30))
    twice = interval(np.tile(x, 2).tolist(), alone(30) * 2)
    assert (twice.low, twice.high) == pytest.approx((once.low, once.high))
    right = (x > 0.4).astype(float)
    many = interval(np.tile(right, 4).tolist(), alone(30) * 4)
    assert many.high - many.low > 0.25
    certain = interval([1.0] * 60, alone(30) * 2)
    assert certain.low == pytest.approx(clopper_pearson(30, 30)[0], abs=0.01)


def test_rows_said_twice_do_not_sharpen_a_difference() -> None:
    a, b = [1.0] * 6 + [0.0] * 4, [0.0] * 10
    once, twice = paired(a, b, alone(10)), paired(a * 2, b * 2, alone(10) * 2)
    assert twice.p == pytest.approx(once.p) == pytest.approx(2 / 64)
    assert twice.high - twice.low > 0.4
    thrice = paired(a * 3, b * 3, alone(10) * 3)
    assert (thrice.low, thrice.high) == pytest.approx((twice.low, twice.high))
    none = paired([0.0] * 20, [0.0] * 20, alone(10) * 2)
    assert none.high == pytest.approx(1 - 0.025 ** (1 / 10), abs=0.02)


def test_paired_by_hand_on_likeness() -> None:
    found = paired([0.5, 0.9, 0.4], [0.4, 0.6, 0.2], alone(3))
    assert found.value == pytest.approx(0.2)
    assert found.p == pytest.approx(2 / 8)
    assert found.low < 0 < 0.2 < found.high


def test_a_corpus_metric_that_is_a_mean_has_the_interval_of_the_mean() -> None:
    x = np.random.default_rng(7).random(50)
    x[:2] = 0.0, 1.0
    of_rows, of_sums = (
        interval(x.tolist(), alone(50)),
        corpus_interval(with_ones(x), mean, alone(50)),
    )
    assert (of_rows.low, of_rows.high) == pytest.approx((of_sums.low, of_sums.high))
    all_right = corpus_interval(with_ones(np.ones(30)), mean, alone(30))
    assert all_right.low == pytest.approx(clopper_pearson(30, 30)[0])


def test_the_same_seed_gives_the_same_interval() -> None:
    x = np.random.default_rng(7).random(20).tolist()
    assert interval(x, alone(20), 1) == interval(x, alone(20), 1) != interval(x, alone(20), 2)
