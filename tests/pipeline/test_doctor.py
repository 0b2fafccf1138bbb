from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tunesmith.pipeline import doctor, machine


def test_each_thing_is_said_with_what_mends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("TUNESMITH_HOME", str(home))
    before = set(sys.modules)
    found = {item["what"]: item for item in doctor.examine()}
    assert not {"torch", "transformers"} & (set(sys.modules) - before)
    assert list(found) == ["python", "torch", "memory", "disk", "default model", "tensorboard"]
    assert all(set(item) == {"what", "ok", "found", "remedy"} for item in found.values())
    assert all(item["ok"] != bool(item["remedy"]) for item in found.values())
    assert found["torch"]["ok"]
    assert "tunesmith models pull" in found["default model"]["remedy"]
    assert str(home) in found["disk"]["found"]


def test_without_torch_it_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "ASK_TORCH", "import no_such_module")
    torch = next(item for item in doctor.examine() if item["what"] == "torch")
    assert torch["remedy"] == "Type: pip install torch"
    assert "no_such_module" in torch["found"]
