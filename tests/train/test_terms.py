from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from tunesmith.models.catalog import read_card
from tunesmith.models.load import load
from tunesmith.models.merge import merge
from tunesmith.train.fit import fit
from tunesmith.train.spec import TrainSpec

ASKED = {"name": "Terms", "file": "TERMS.html", "notice": "Under the terms.\n"}


def with_terms(tiny: Path, base: Path) -> Path:
    """A base that comes under terms of its own."""
    shutil.copytree(tiny, base)
    (base / "TERMS.html").write_text("the terms")
    (base / "NOTICE").write_text("of the base")
    card = {"name": "ours", "licence": "Terms", "terms": ASKED}
    (base / "tunesmith.json").write_text(json.dumps(card))
    return base


def test_the_adapter_of_a_base_with_terms_carries_them(
    tiny: Callable[..., Path], spec_of: Callable[..., TrainSpec], tmp_path: Path
) -> None:
    base, out = with_terms(tiny(), tmp_path / "base"), tmp_path / "run"
    spec = spec_of(out, model=str(base), weights_hash=load(base).weights_hash, epochs=0.25)
    fit(spec, lambda _: None)
    adapter = out / "adapter"
    assert (adapter / "TERMS.html").read_text() == "the terms"
    assert (adapter / "NOTICE").read_text().startswith("Under the terms.\n")
    told = read_card(adapter)
    assert (told["licence"], told["terms"]) == ("Terms", ASKED)
    load(base).adapters.load("ours", adapter, weights_hash=spec.weights_hash)


def test_trained_and_merged_models_carry_them_and_what_is_trained_on_these_too(
    tiny: Callable[..., Path], spec_of: Callable[..., TrainSpec], tmp_path: Path
) -> None:
    base, out = with_terms(tiny(), tmp_path / "base"), tmp_path / "full"
    full = spec_of(out, model=str(base), full=True, epochs=0.25)
    # What a kill left behind is no part of the model.
    (out / ".model.partial").mkdir()
    (out / ".model.partial" / "half.safetensors").write_text("cut")
    fit(full, lambda _: None)
    again = spec_of(
        tmp_path / "again",
        model=str(out / "model"),
        name="mine",
        weights_hash=load(out / "model").weights_hash,
        epochs=0.25,
    )
    fit(again, lambda _: None)
    merge(out / "model", tmp_path / "again" / "adapter", tmp_path / "merged")
    for folder in (out / "model", tmp_path / "again" / "adapter", tmp_path / "merged"):
        assert (folder / "TERMS.html").read_text() == "the terms"
        notice = (folder / "NOTICE").read_text()
        assert notice.startswith("Under the terms.\n")
        assert "a change of" in notice
        assert read_card(folder)["terms"] == ASKED
        assert not (folder / "half.safetensors").exists()
