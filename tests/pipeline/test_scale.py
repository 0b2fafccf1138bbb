from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunesmith.errors import UsageError
from tunesmith.models.load import load
from tunesmith.pipeline.export import export
from tunesmith.pipeline.scale import write_scaled


def test_half_an_adapter_adds_half_as_much_to_a_layer(made: Any, tmp_path: Path) -> None:
    write_scaled(made.folder.adapter, tmp_path / "half", 0.5)
    model = load(made.run.model.folder, dtype="float32")
    for name, folder in (("whole", made.folder.adapter), ("part", tmp_path / "half")):
        model.adapters.load(name, folder, weights_hash=made.run.model.weights_hash)
    whole, half = dict(model.adapters.lows("whole")), dict(model.adapters.lows("part"))
    for path, low in whole.items():
        assert half[path].scale == low.scale / 2
        assert half[path].b.equal(low.b)


def test_an_export_may_have_less_of_the_adapter(at_home: Any, tmp_path: Path) -> None:
    name = at_home.report["model"]["tuned"]
    export(name, "adapter", tmp_path / "part", scale=0.25)
    configs = [
        json.loads((folder / "adapter_config.json").read_text())
        for folder in (at_home.folder.adapter, tmp_path / "part")
    ]
    assert configs[1]["lora_alpha"] == configs[0]["lora_alpha"] / 4
    with pytest.raises(UsageError, match="above 0"):
        export(name, "adapter", tmp_path / "none", scale=0)


@pytest.mark.parametrize("key", ["use_dora", "modules_to_save"])
def test_what_is_not_linear_in_its_scale_is_refused(made: Any, tmp_path: Path, key: str) -> None:
    write_scaled(made.folder.adapter, tmp_path / "a", 1)
    path = tmp_path / "a" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: ["x"]}))
    with pytest.raises(UsageError, match="have no scale"):
        write_scaled(tmp_path / "a", tmp_path / "b", 0.5)
