from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tunesmith.errors import ModelError, UsageError
from tunesmith.models import fetch
from tunesmith.pipeline.export import export
from tunesmith.store import Store


def test_an_adapter_and_merged_weights_are_written_and_nothing_is_overwritten(
    at_home: Any, tmp_path: Path
) -> None:
    name = at_home.report["model"]["tuned"]
    export(name, "adapter", tmp_path / "adapter")
    for file in at_home.folder.adapter.iterdir():
        assert (tmp_path / "adapter" / file.name).read_bytes() == file.read_bytes()
    found = export(name, "merged", tmp_path / "new" / "merged")
    assert found["difference"] < 1e-4 < found["effect"]
    assert fetch.local(tmp_path / "new" / "merged", name="merged").weights_hash
    with pytest.raises(UsageError, match="is there already"):
        export(name, "merged", tmp_path / "adapter")


def test_a_model_of_its_own_weights_is_copied_and_has_no_adapter(
    at_home: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path))
    base = at_home.run.model.folder
    with Store.at(tmp_path) as store:
        store.register_model(
            "ft:own", base="tiny", base_hash="h", base_folder=base, adapter_folder=None
        )
    export("ft:own", "merged", tmp_path / "out")
    assert fetch.weights_hash(tmp_path / "out") == fetch.weights_hash(base)
    with pytest.raises(UsageError, match="has no adapter"):
        export("ft:own", "adapter", tmp_path / "other")
    with pytest.raises(UsageError, match="no tuned model"):
        export("ft:none", "adapter", tmp_path / "other")


def test_what_the_merge_refuses_is_said(
    at_home: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path))
    with Store.at(tmp_path) as store:
        store.register_model(
            "ft:broken",
            base="tiny",
            base_hash="h",
            base_folder=at_home.run.model.folder,
            adapter_folder=at_home.run.model.folder,
        )
    with pytest.raises(ModelError, match="no adapter_config"):
        export("ft:broken", "merged", tmp_path / "out")
    assert not (tmp_path / "out").exists()
