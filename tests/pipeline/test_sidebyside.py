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
    wanted: Recipe, tmp_path: Path, write_rows: Callable[..., Path], screen: Any
) -> None:
    path = write_rows(tmp_path, [{"prompt": "no answer"}])
    asked = recipes.with_values(wanted, {"data.files": [str(path)]})
    with pytest.raises(DataError, match="1 of 1 rows are bad"):
        evaluate(asked, ["base"], screen)
