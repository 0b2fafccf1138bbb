from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tunesmith import recipe as recipes
from tunesmith.data.examples import Conversation
from tunesmith.data.split import read_jsonl, write_jsonl
from tunesmith.errors import UsageError
from tunesmith.evaluate import memorising
from tunesmith.evaluate.probes import replayed
from tunesmith.pipeline import extra, prepare
from tunesmith.pipeline.folder import RunFolder
from tunesmith.recipe import Recipe


def rows(folder: RunFolder) -> list[Conversation]:
    return [row for row in read_jsonl(folder.data / extra.FILE) if isinstance(row, Conversation)]


def test_canaries_are_rows_of_their_own(made: Any, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.data.mkdir()
    recipe = recipes.with_values(Recipe(), {"train.canaries": 3, "train.seed": 5})
    extra.write(recipe, made.run.model, folder)
    planted = memorising.canaries(3, 5)
    assert [row.answer.content for row in rows(folder)] == [canary.secret for canary in planted]
    assert {row.source.file for row in rows(folder)} == {"canaries"}


def test_nothing_is_written_where_nothing_is_asked_for(made: Any, tmp_path: Path) -> None:
    extra.write(Recipe(), made.run.model, RunFolder(tmp_path))
    assert not list(tmp_path.iterdir())


def test_replayed_rows_are_the_bases_own_answers_to_general_prompts(
    made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extra, "ANSWER_TOKENS", 400)
    folder = RunFolder(tmp_path)
    folder.data.mkdir()
    write_jsonl(made.run.rows("train")[:20], folder.data / "train.jsonl")
    recipe = recipes.with_values(Recipe(), {"train.replay": 0.2})
    extra.write(recipe, made.run.model, folder)
    found = rows(folder)
    assert len(found) == 4
    assert all(row.prompt[0].content in replayed() for row in found)
    assert all(row.answer.content for row in found)
    before = (folder.data / extra.FILE).read_bytes()
    extra.write(recipe, made.run.model, folder)
    assert (folder.data / extra.FILE).read_bytes() == before


@pytest.mark.parametrize("key", ["train.replay", "train.canaries"])
def test_text_has_no_rows_beside_it(key: str) -> None:
    with pytest.raises(UsageError, match=r"method\.type=cpt"):
        prepare.learnable(recipes.with_values(Recipe(), {"method.type": "cpt", key: 1}))
