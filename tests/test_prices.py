from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from tunesmith import prices
from tunesmith.errors import UsageError

OWN = """
compiled: 2027-02-01
sources: {mine: my contract}
tokens:
- {provider: openai, model: gpt-5.4, input: 1.0, as_of: "2027-02", confidence: high, source: mine}
- {provider: us, model: desk, tuned: true, train: 0, as_of: "2027-02-01", confidence: low, source: mine}
gpus:
- {provider: us, gpu: A10, tier: own, memory_gb: 24, tflops: 125, as_of: "2027-01", confidence: low, source: mine}
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "prices.yaml"
    path.write_text(OWN)
    return path


def test_every_row_that_ships_is_dated_and_has_a_source() -> None:
    table = prices.read()
    rows = [*table.tokens, *table.gpus]
    assert len(rows) > 50
    assert {row.source for row in rows} == set(table.sources)
    assert all(0 <= row.age(date(2026, 11, 22)) < 400 for row in rows)
    assert len({row.key for row in rows}) == len(rows)


def test_what_is_not_known_is_none_and_never_zero() -> None:
    table = prices.read()
    figures = [x for row in table.tokens for x in (row.train, row.input, row.output, row.minimum)]
    assert None in figures
    assert 0 not in figures
    ends = table.model("ft:gpt-4o-mini-2024-07-18")
    assert ends is not None
    assert ends.ends == date(2027, 1, 14)


def test_a_table_of_ones_own_replaces_rows_and_adds_some(own: Path) -> None:
    shipped, table = prices.read(), prices.read([own])
    ours, theirs = table.model("openai/gpt-5.4"), shipped.model("gpt-5.4")
    assert ours is not None
    assert theirs is not None
    assert (theirs.input, theirs.output) == (2.5, 15.0)
    # The row as a whole: an old output price beside a new input price would be neither table's.
    assert (ours.input, ours.output) == (1.0, None)
    desk = table.model("desk")
    assert desk is not None
    assert desk.train == 0
    assert len(table.tokens) == len(shipped.tokens) + 1
    assert len(table.gpus) == len(shipped.gpus) + 1
    assert table.model("nobody") is None


def test_the_age_is_told_and_old_prices_are_called_old(own: Path) -> None:
    assert prices.read().age(date(2026, 11, 23)) == (
        "Prices as compiled on 2026-11-21, 2 days ago; the oldest source is 322 days old."
    )
    assert "They are old" in prices.read().age(date(2027, 7, 1))
    assert "They are old" not in prices.read([own]).age(date(2027, 7, 1))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("compiled: [", "cannot be read"),
        ("tokens: []", "compiled: field required"),
        ("compiled: 2027-01-01\nfree: yes", "free: extra inputs"),
        (OWN.replace("input: 1.0", "input: -1"), r"tokens.0.input: input should be greater"),
        (OWN.replace('"2027-02"', "lately"), r"tokens.0.as_of"),
    ],
)
def test_a_table_that_is_none_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=said):
        prices.read([path])


def test_a_table_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        prices.read([tmp_path / "none.yaml"])
