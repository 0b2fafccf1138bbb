from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from tunesmith.pipeline.folder import RunFolder
from tunesmith.pipeline.heldout import summary

BIT = math.log(2)


def folder_of(path: Path, rows: list[dict[str, Any]], split: str = "test") -> RunFolder:
    folder = RunFolder(path)
    folder.write_json("heldout.json", {"rows": rows})
    folder.write_json("train.json", {"heldout": str(folder.data / f"{split}.jsonl")})
    return folder


def row(line: int, size: int, base: float, tuned: float) -> dict[str, Any]:
    """A passage of one token every two bytes; costs in bits."""
    costs = {"base": base * BIT, "tuned": tuned * BIT}
    return {"file": "book.txt", "line": line, "bytes": size, "tokens": size // 2, **costs}


def test_bits_per_byte_by_hand(tmp_path: Path) -> None:
    # 300 bits before and 200 after over 150 bytes and 75 tokens: a long passage weighs more.
    found = summary(folder_of(tmp_path, [row(1, 100, 200, 150), row(9, 50, 100, 50)]))
    assert (found["split"], found["passages"]) == ("test", 2)
    assert (found["bytes"], found["tokens"]) == (150, 75)
    bits = found["bits_per_byte"]
    assert (bits["base"], bits["tuned"]) == pytest.approx((2.0, 4 / 3))
    gap = bits["difference"]
    assert gap["value"] == pytest.approx(-2 / 3)
    # The passages alone differ by -0.5 and by -1.
    assert -1 <= gap["low"] <= gap["value"] <= gap["high"] <= -0.5
    assert (found["perplexity"]["base"], found["perplexity"]["tuned"]) == pytest.approx(
        (2**4, 2 ** (8 / 3))
    )


def test_a_difference_that_may_be_chance_has_zero_in_its_interval(tmp_path: Path) -> None:
    rows = [row(n, 100, 200, 200 + (10 if n % 2 else -11)) for n in range(12)]
    gap = summary(folder_of(tmp_path, rows))["bits_per_byte"]["difference"]
    assert gap["low"] < 0 < gap["high"]


def test_pieces_of_one_row_count_as_one(tmp_path: Path) -> None:
    rows = [row(1, 100, 200, 150), row(1, 100, 200, 120)]
    found = summary(folder_of(tmp_path, rows, "validation"))
    assert found["split"] == "validation"
    assert found["bits_per_byte"]["difference"] == {
        "value": None,
        "reason": "one held-out text has no interval",
    }
    assert summary(folder_of(tmp_path, [])) == {"value": None, "reason": "no text was held out"}
