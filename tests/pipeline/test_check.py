from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunesmith import recipe as recipes
from tunesmith.pipeline.check import Checked, check
from tunesmith.recipe import Recipe

DATA = {
    *("rows", "used", "rejected", "duplicates", "train", "validation", "test"),
    *("trained_tokens", "masked_tokens", "truncated_rows"),
}


def checked(path: Path, model: str, screen: Any, **values: Any) -> Checked:
    asked = {"data.files": [str(path)], "model.name": model, "data.limit": 300, **values}
    return check(recipes.with_values(Recipe(), asked), screen)


def test_real_broken_files_are_judged_row_by_row_and_never_break_the_check(
    shared: Callable[[str], Path], model: Path, screen: Any
) -> None:
    files = [path for path in sorted(shared("dirty_files").iterdir()) if path.suffix != ".md"]
    assert len(files) == 27
    refused = set()
    for path in files:
        found = checked(path, str(model), screen)
        value = json.loads(json.dumps(found.value))
        assert set(value) == {"data", "findings"}, path.name
        assert set(value["data"]) == DATA, path.name
        for finding in value["findings"]:
            assert set(finding) == {"check", "severity", "rows", "message", "remedy"}, path.name
        if path.suffix != ".jpg":
            data = value["data"]
            accounted = data["used"] + data["rejected"] + data["duplicates"]
            assert data["rows"] == accounted, path.name
        if found.refused is not None:
            refused.add(path.name)
            assert found.refused.exit_code == 3
    assert {"oversized_photo_label_7.jpg", "functions_trailing_comma_1.json"} <= refused
    assert not {"openai_chat_clean.jsonl", "alpaca_identity.json"} & refused


@pytest.mark.parametrize("name", ["some/hub-id", "no-such-model"])
def test_without_a_model_the_check_goes_on_and_says_that_tokens_are_not_counted(
    tmp_path: Path,
    numbers: list[dict[str, str]],
    write_rows: Callable[..., Path],
    screen: Any,
    name: str,
) -> None:
    found = checked(write_rows(tmp_path, numbers), name, screen)
    assert found.refused is None
    assert found.value["data"]["used"] == 120
    assert found.value["data"]["trained_tokens"]["value"] is None
    assert any(said.startswith("tokens are not counted: ") for said in screen.said)
    assert screen.reports[0].tokens is None


def test_a_file_that_is_not_there_is_a_finding_and_a_refusal(
    tmp_path: Path, model: Path, screen: Any
) -> None:
    found = checked(tmp_path / "nowhere.jsonl", str(model), screen)
    assert found.refused is not None
    assert [f["severity"] for f in found.value["findings"]] == ["error"]
    assert "nowhere.jsonl cannot be read" in found.value["findings"][0]["message"]
    assert set(found.value["data"]) == DATA
    assert found.value["data"]["rows"]["value"] is None


def test_the_ledger_is_told_with_a_model(
    tmp_path: Path,
    numbers: list[dict[str, str]],
    write_rows: Callable[..., Path],
    model: Path,
    screen: Any,
) -> None:
    data = checked(write_rows(tmp_path, numbers), str(model), screen).value["data"]
    assert data["trained_tokens"] > 0
    assert data["masked_tokens"] > data["trained_tokens"]
    assert screen.said == [
        "At worst, 40 test rows tell differences above 0.3 only; label 140 more to see 0.15."
    ]
    assert screen.reports[0].tokens.largest < 60


def test_running_text_is_checked_in_passages(
    shared: Callable[[str], Path], model: Path, screen: Any
) -> None:
    text = shared("text_shakespeare/dev.txt")
    found = checked(text, str(model), screen, **{"method.type": "cpt"})
    assert found.refused is None
    data = found.value["data"]
    assert data["rows"] == data["used"] == data["train"] + data["validation"] + data["test"]
    assert data["trained_tokens"] > 20 * data["masked_tokens"] > 0
    assert screen.reports[0].turns is None
