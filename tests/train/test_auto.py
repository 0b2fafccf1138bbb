from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.train import auto


def test_the_rate_worked_by_hand() -> None:
    # 5e-4 x (2000 / 576)^1.34 = 5e-4 x 5.302
    assert auto.learning_rate(576, steps=200, batch=32).value == pytest.approx(2.7e-3)
    short = auto.learning_rate(576, steps=50, batch=32)
    assert short.value == pytest.approx(4e-3)
    assert "50 steps" in short.reason
    assert auto.learning_rate(2000, steps=200, batch=32).value == 5e-4
    # A tenth for all weights.
    assert auto.learning_rate(2000, steps=200, batch=32, full=True).value == 5e-5
    # A quarter of the batch, half of the rate.
    assert auto.learning_rate(2000, steps=200, batch=8).value == 2.5e-4


@given(st.integers(0, 10**7))
def test_every_choice_is_in_its_range_and_says_why(count: int) -> None:
    assert 4 <= auto.batch_rows(count).value <= 32
    assert 3 <= auto.epochs(count).value <= 5
    assert auto.rank(count).value in (16, 32)
    assert auto.save_every(count).value >= 1
    for choice in (auto.batch_rows(count), auto.epochs(count), auto.save_every(count)):
        assert str(count) in choice.reason
    assert f"{count:,}" in auto.rank(count).reason
    assert auto.max_batch_tokens().reason


def test_text_is_counted_in_tokens() -> None:
    # 1/100 of the tokens a step, 2,048 at least and 32,768 at most, in passages of 500.
    assert [auto.text_rows(tokens // 500, tokens).value for tokens in (10_000, 10**6, 10**8)] == [
        *(4, 20, 66),
    ]
    assert auto.text_rows(1, 3).value == 1
    assert [auto.text_epochs(tokens).value for tokens in (10**6, 10**7)] == [2, 1]
    assert "1,000,000 tokens" in auto.text_epochs(10**6).reason


def test_choices_by_hand() -> None:
    assert [auto.batch_rows(rows).value for rows in (20, 200, 500, 2000)] == [4, 8, 16, 32]
    assert [auto.epochs(rows).value for rows in (200, 400, 1000)] == [5, 4, 3]
    assert [auto.save_every(steps).value for steps in (1, 12, 13, 240)] == [1, 1, 2, 20]
