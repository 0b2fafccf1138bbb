from __future__ import annotations

import json
import time
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.api import limits
from tunesmith.api.limits import DEPTH, Rates, TooMany, check_json
from tunesmith.serve.wire import Refusal


def test_a_bucket_holds_a_minutes_requests_and_fills_by_the_second() -> None:
    now = 0.0
    rates = Rates(60, clock=lambda: now)
    for left in range(59, -1, -1):
        assert rates.spend("a").left == left
    with pytest.raises(TooMany) as refused:
        rates.spend("a")
    assert refused.value.wait == 1
    now = 2.5
    assert rates.spend("a").left == 1.5
    assert rates.spend("b").left == 59
    now = 1000.0
    assert rates.spend("a").left == 59


def test_the_names_that_asked_longest_ago_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "REMEMBERED", 2)
    rates = Rates(2, clock=lambda: 0.0)
    for name in ("a", "b", "a", "c"):
        rates.spend(name)
    with pytest.raises(TooMany):
        rates.spend("a")
    assert rates.spend("b").left == 1


def deep(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(deep, value.values()), default=0)
    return 1 + max(map(deep, value), default=0) if isinstance(value, list) else 0


texts = st.text('[]{}"\\a', max_size=8)
values = st.recursive(
    texts, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3)
)


@given(values, st.integers(0, DEPTH + 20), st.booleans())
def test_json_is_refused_exactly_when_it_is_nested_too_deep(
    value: Any, levels: int, spaced: bool
) -> None:
    for level in range(levels):
        value = [value, "]"] if level % 2 else {"}": value}
    body = json.dumps(value, indent=1 if spaced else None).encode()
    try:
        check_json(body)
    except Refusal:
        assert deep(value) > DEPTH
    else:
        assert deep(value) <= DEPTH


@pytest.mark.parametrize(
    "body",
    [b"[" * 2**23, b'"' * 2**23, b'"\\' * 2**22, b"[]" * 2**22, b'[""' * 2**21, b"]" * 2**23],
    ids=["open", "quotes", "escapes", "empty", "mixed", "closed"],
)
def test_the_look_at_eight_megabytes_is_quick_whatever_is_in_them(body: bytes) -> None:
    began = time.process_time()
    with suppress(Refusal):
        check_json(b"[" * 101 + body)
    assert time.process_time() - began < 5


@pytest.mark.parametrize(
    ("text", "good"),
    [
        (r'"\ud83d\ude00"', True),
        (r'"\\ud83d"', True),
        (r'"\\u0000"', True),
        (r'"\ud83d\\ude00"', False),
        (r'"\ud83d\\\ude00"', False),
        (r'"\ude00\ud83d"', False),
        (r'"\uDEAD"', False),
        (r'"\\\u0000"', False),
    ],
)
def test_text_that_no_database_takes_is_refused(text: str, good: bool) -> None:
    value = json.loads(text)
    plain = "\0" not in value and value.encode("utf-8", "replace").decode() == value
    assert plain == good
    if good:
        check_json(text.encode())
    else:
        with pytest.raises(Refusal, match="surrogate"):
            check_json(text.encode())
