from __future__ import annotations

from typing import Any

import pytest

from tunesmith.pipeline import begin


def test_the_environment_says_what_it_takes_to_make_the_numbers_again(made: Any) -> None:
    about = made.folder.read_json("environment.json")
    assert set(about) == {
        *("versions", "hardware", "git_revision", "seed", "data_sha256"),
        *("base_weights_sha256", "base_revision", "key"),
    }
    assert about["base_weights_sha256"] == made.run.model.weights_hash
    assert set(begin.PACKAGES) < set(about["versions"])


def test_outside_a_repository_there_is_no_revision(
    made: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    about = begin.environment(made.recipe, made.run.model, "d")
    assert about["git_revision"] is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert begin.environment(made.recipe, made.run.model, "d")["git_revision"] is None
