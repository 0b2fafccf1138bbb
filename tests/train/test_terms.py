from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from tunesmith.models.catalog import read_card
from tunesmith.models.load import load
from tunesmith.train.fit import fit
from tunesmith.train.spec import TrainSpec


def test_the_adapter_of_a_base_with_terms_carries_them(
    tiny: Callable[..., Path], spec_of: Callable[..., TrainSpec], tmp_path: Path
) -> None:
    base, out = tmp_path / "base", tmp_path / "run"
    shutil.copytree(tiny(), base)
    (base / "TERMS.html").write_text("the terms")
    asked = {"name": "Terms", "file": "TERMS.html", "notice": "Under the terms.\n"}
    card = {"name": "ours", "licence": "Terms", "terms": asked}
    (base / "tunesmith.json").write_text(json.dumps(card))
    spec = spec_of(out, model=str(base), weights_hash=load(base).weights_hash, epochs=0.25)
    fit(spec, lambda _: None)
    adapter = out / "adapter"
    assert (adapter / "TERMS.html").read_text() == "the terms"
    assert (adapter / "NOTICE").read_text().startswith("Under the terms.\n")
    told = read_card(adapter)
    assert (told["licence"], told["terms"], told["notice"]) == ("Terms", "TERMS.html", "NOTICE")
    load(base).adapters.load("ours", adapter, weights_hash=spec.weights_hash)
