from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunesmith import recipe as recipes
from tunesmith.errors import UsageError
from tunesmith.pipeline import forget
from tunesmith.recipe import Recipe


def test_the_report_says_what_was_lost_with_intervals(made: Any) -> None:
    lost = made.report["forgetting"]
    spread = lost["kl_interval"]
    assert spread["low"] <= lost["kl"] == spread["value"] <= spread["high"]
    assert spread["n"] > 20
    suites = {"knowledge", "commonsense", "instructions", "arithmetic", "refusals", "score"}
    assert set(lost["general"]) == {
        *suites,
        *("knowledge_normalised", "commonsense_normalised", "text_logprob"),
    }
    for part in lost["general"].values():
        assert part["difference"] == pytest.approx(part["tuned"] - part["base"])
        assert part["low"] <= part["difference"] <= part["high"]
    assert lost["general"]["score"]["n"] == 40 + 40 + 32 + 32 + 30


def test_the_trade_off_goes_from_the_base_to_the_tuned_model(made: Any) -> None:
    curve = made.report["forgetting"]["tradeoff"]
    points = curve["points"]
    assert [point["scale"] for point in points] == [0, 0.25, 0.5, 0.75, 1]
    assert points[0]["kl"]["value"] == 0
    assert all(point["task"]["n"] == curve["rows"] > 0 for point in points)
    assert all(point["kl"]["n"] > 0 for point in points[1:])
    page = (made.folder.path / "report.html").read_text()
    assert "What less of the adapter keeps" in page
    assert "General ability; higher is better" in page


def test_every_answer_to_a_probe_is_kept(made: Any) -> None:
    lines = made.folder.read_lines(forget.LINES)
    kinds = {line["kind"] for line in lines}
    assert kinds == {"closed", "open"}
    assert len([line for line in lines if line["kind"] == "closed"]) == 40 + 40 + 32 + 32 + 30 + 12
    assert json.dumps(made.folder.read_json(forget.FILE)["forgetting"]) == json.dumps(
        made.report["forgetting"]
    )


def test_answers_of_a_word_are_learned_and_not_memorised(made: Any) -> None:
    found = made.report["memorising"]
    assert found["training_prompts"]["reason"] == "no training answer has 12 words"
    assert found["test_answers"]["tuned"]["answers"] == 40
    assert found["test_answers"]["tuned"]["repeating"] == 0
    assert found["personal"]["in_training"] == 0
    assert found["canaries"]["reason"] == "train.canaries=0"
    assert [point["step"] for point in found["gaps"]][-1] == 15


def test_what_is_left_out_is_missing_with_the_reason(made: Any, tmp_path: Path) -> None:
    folder = type(made.folder)(tmp_path)
    for part in forget.parts(folder, {}).values():
        assert part == {"value": None, "reason": "it was left out: forgetting.probe=off"}


def test_own_probes_are_asked_beside_those_that_ship(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text('{"prompt": "p", "reference": "r"}\n' * 9)
    name = f"{tmp_path.name}_own"
    recipe = recipes.with_values(
        Recipe(), {"forgetting.probes": [str(path)], "forgetting.limit": 4}
    )
    probes = forget.gather(recipe)
    assert len(probes) == len(forget.gather(Recipe())) + 4
    assert {probe.suite for probe in probes[-4:]} == {name}
    gone = recipes.with_values(Recipe(), {"forgetting.probes": ["gone.jsonl"]})
    with pytest.raises(UsageError, match=r"gone\.jsonl"):
        forget.gather(gone)


def test_scales_are_made_where_they_are_wanted_and_end_with_the_block(made: Any) -> None:
    with forget.scaled(made.folder, made.recipe) as scales:
        assert list(scales) == ["scale-0.25", "scale-0.5", "scale-0.75"]
        assert all(folder.is_dir() for folder in scales.values())
    assert not any(folder.exists() for folder in scales.values())
    without = recipes.with_values(made.recipe, {"forgetting.tradeoff": False})
    with forget.scaled(made.folder, without) as scales:
        assert scales == {}
