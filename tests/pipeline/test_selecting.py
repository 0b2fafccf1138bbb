from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunesmith import recipe as recipes
from tunesmith.errors import UsageError
from tunesmith.pipeline.check import Closer, check
from tunesmith.recipe import Recipe


@pytest.fixture
def no_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """The encoder cannot be fetched: rows are compared by words."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.usefixtures("no_index")
def test_selected_rows_keep_their_form_and_cover_more_labels_than_a_random_sample(
    shared: Callable[[str], Path], tmp_path: Path, model: Path, screen: Any
) -> None:
    rows = lines(shared("banking77/train.jsonl"))[:600]
    rows.append(rows[0])
    file, out = tmp_path / "rows.jsonl", tmp_path / "best.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    asked = recipes.with_values(Recipe(), {"data.files": [str(file)], "model.name": str(model)})
    found = check(asked, screen, Closer(select=90, out=out))
    kept, left = lines(out), lines(tmp_path / "best.left.jsonl")
    assert len(kept) == 90
    for row in kept:
        source = row.pop("source")
        assert source["file"] == str(file)
        assert rows[source["line"] - 1] == row
    covered = {row["label"] for row in kept}
    by_chance = [
        len({row["label"] for row in random.Random(seed).sample(rows, 90)}) for seed in range(20)
    ]
    assert len(covered) > max(by_chance)
    assert len(kept) + len(left) == len(rows)
    assert all(row["reason"] and row["line"] and row["row"] for row in left)
    assert any("exact copy" in row["reason"] for row in left)
    told = found.value["selected"]
    assert (told["kept"], told["left"], told["refused"]) == (90, len(left) - 1, 1)
    assert told["labels"] == len(covered)
    assert any(text.startswith(f"kept 90 rows with {len(covered)} of ") for text in screen.said)
    again = tmp_path / "again.jsonl"
    check(asked, screen, Closer(select=90, out=again))
    assert again.read_bytes() == out.read_bytes()


def test_a_number_without_a_file_is_refused(screen: Any) -> None:
    with pytest.raises(UsageError, match="go together"):
        check(Recipe(), screen, Closer(select=5))
