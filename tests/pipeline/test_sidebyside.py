from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunesmith import recipe as recipes
from tunesmith.errors import DataError, ModelError, UsageError
from tunesmith.pipeline.sidebyside import evaluate
from tunesmith.recipe import Recipe


def test_arms_that_are_named_twice_or_not_known_are_refused(wanted: Recipe, screen: Any) -> None:
    with pytest.raises(UsageError, match="each arm once"):
        evaluate(wanted, ["base", "base"], screen)
    with pytest.raises(ModelError, match="there is no model 'nobody'"):
        evaluate(wanted, ["base", "nobody"], screen)


def test_data_that_a_run_would_refuse_is_refused_here(
    at_home: Any, tmp_path: Path, write_rows: Callable[..., Path], screen: Any
) -> None:
    path = write_rows(tmp_path, [{"prompt": "no answer"}])
    asked = recipes.with_values(at_home.recipe, {"data.files": [str(path)]})
    with pytest.raises(DataError, match="1 of 1 rows are bad"):
        evaluate(asked, ["base"], screen)


def test_the_tuned_model_scores_new_rows_as_it_did_in_the_run(at_home: Any, screen: Any) -> None:
    """The run's test rows as data: same answers, so the same numbers (greedy does not depend on
    batch-mates)."""
    values = {"data.files": [str(at_home.folder.data / "test.jsonl")], "evaluate.max_tokens": 16}
    asked = recipes.with_values(at_home.recipe, values)
    tuned = at_home.report["model"]["tuned"]
    found = evaluate(asked, ["base", tuned], screen)
    assert found["data"]["rows"] == 40
    assert [(arm["name"], arm["kind"]) for arm in found["arms"]] == [
        ("base", "base"),
        (tuned, "tuned"),
    ]
    assert [(c["a"], c["b"]) for c in found["comparisons"]] == [("base", tuned)]
    said = {arm["kind"]: arm["scores"]["logprob"] for arm in found["arms"]}
    for arm in at_home.report["arms"]:
        if arm["kind"] in said:
            assert said[arm["kind"]]["value"] == pytest.approx(
                arm["scores"]["logprob"]["value"], abs=0.02
            )
