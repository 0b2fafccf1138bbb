from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from tunesmith.errors import ModelError, UsageError
from tunesmith.models import fetch
from tunesmith.pipeline.export import export
from tunesmith.store import Store
from tunesmith.testing import tiny_model


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


def test_an_adapter_goes_beside_its_base_as_gguf_and_is_measured(
    at_home: Any, tmp_path: Path
) -> None:
    pytest.importorskip("xllamacpp")
    out = tmp_path / "Files"
    made = export(at_home.report["model"]["tuned"], "gguf", out)
    assert sorted(file.name for file in out.iterdir()) == [
        "Modelfile",
        "adapter.gguf",
        "model.gguf",
    ]
    assert (out / "Modelfile").read_text() == "FROM ./model.gguf\nADAPTER ./adapter.gguf\n"
    assert made["commands"] == [
        f"llama-server --jinja -m {out}/model.gguf --lora {out}/adapter.gguf",
        f"llama-cli --jinja -m {out}/model.gguf --lora {out}/adapter.gguf",
        f"ollama create files -f {out}/Modelfile",
    ]
    off = made["off"]
    assert off["same"] == off["answers"] == 12
    assert off["largest"] < 0.02


def test_weights_of_their_own_become_one_gguf_file_in_the_width_that_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("xllamacpp")
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path))
    base = tiny_model(tmp_path / "tiny", tie_word_embeddings=True)
    with Store.at(tmp_path) as store:
        store.register_model(
            "ft:own", base="tiny", base_hash="h", base_folder=base, adapter_folder=None
        )
    made = export("ft:own", "gguf", tmp_path / "out", dtype="float32")
    assert [Path(file).name for file in made["files"]] == ["model.gguf", "Modelfile"]
    assert made["off"]["answers"] == 6
    assert made["off"]["tokens"] > 0
    assert 0 < made["off"]["mean"] <= made["off"]["largest"] < 0.005


def test_what_has_no_form_in_gguf_is_merged_and_what_llama_cpp_cannot_compute_is_refused(
    at_home: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without llama.cpp the files are written and not measured.
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path))
    adapter = shutil.copytree(at_home.folder.adapter, tmp_path / "adapter")
    settings = json.loads((adapter / "adapter_config.json").read_text())
    # The same change, said to be of a module that is trained whole: no such file fits.
    settings["modules_to_save"] = ["model.norm"]
    tensors = load_file(adapter / "adapter_model.safetensors")
    base = at_home.run.model.folder
    name = "model.norm.weight"
    tensors[f"base_model.model.{name}"] = load_file(base / "model.safetensors")[name] * 1.5
    save_file(tensors, adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    other = tiny_model(tmp_path / "neox", family="gpt_neox")
    with Store.at(tmp_path) as store:
        for model, folder, own in (("ft:whole", base, adapter), ("ft:neox", other, None)):
            store.register_model(
                model, base="tiny", base_hash="h", base_folder=folder, adapter_folder=own
            )
    made = export("ft:whole", "gguf", tmp_path / "out")
    assert made["merged"]["why"] == "modules_to_save has no form in GGUF"
    assert made["merged"]["difference"] < 1e-4 < made["merged"]["effect"]
    assert made["off"] is None
    assert (tmp_path / "out" / "Modelfile").read_text() == "FROM ./model.gguf\n"
    assert not list((tmp_path / "gguf").iterdir())
    with pytest.raises(ModelError, match=r"gpt_neox is none of.*--to merged"):
        export("ft:neox", "gguf", tmp_path / "none")
