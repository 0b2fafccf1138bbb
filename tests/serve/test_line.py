from __future__ import annotations

import pytest

from tunesmith.serve.line import Line
from tunesmith.serve.wire import Refusal


def test_a_full_line_turns_away_and_says_when_there_is_room() -> None:
    now = [0.0]
    line = Line(2, 3, clock=lambda: now[0])
    line.enter(5)
    for _ in range(2):
        now[0] += 4
        line.leave()
    line.enter(2)
    # 5 rows of 5 are there; 3 more need three ends, 4 seconds apart.
    with pytest.raises(Refusal) as caught:
        line.enter(3)
    refusal = caught.value
    assert (refusal.status, refusal.kind, refusal.code) == (429, "requests", "rate_limit_exceeded")
    assert refusal.headers == {"retry-after": "12"}
    assert line.rows == 5


def test_an_idle_engine_takes_a_request_of_any_size() -> None:
    line = Line(2, 0)
    line.enter(8)
    with pytest.raises(Refusal, match="take"):
        line.enter(1)
    line.leave(8)
    line.enter(1)
    assert line.rows == 1


def test_nobody_is_sent_away_for_longer_than_clients_wait() -> None:
    now = [0.0]
    line = Line(1, 0, clock=lambda: now[0])
    line.enter(1)
    with pytest.raises(Refusal) as caught:
        line.enter(1)
    assert caught.value.headers == {"retry-after": "1"}
    now[0] = 1000
    line.leave()
    line.enter(1)
    with pytest.raises(Refusal) as caught:
        line.enter(1)
    assert caught.value.headers == {"retry-after": "60"}
