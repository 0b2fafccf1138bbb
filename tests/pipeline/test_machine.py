from __future__ import annotations

from pathlib import Path

import pytest

from tunesmith import recipe as recipes
from tunesmith.errors import TrainingError, UsageError
from tunesmith.pipeline import machine
from tunesmith.recipe import Recipe
from tunesmith.testing import tiny_model


def test_torch_is_asked_in_a_process_of_its_own() -> None:
    found = machine.torch_facts()
    assert set(found) == {"version", "cuda", "device", "bf16", "threads"}


def test_without_torch_it_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "ASK_TORCH", "import no_such_module")
    with pytest.raises(TrainingError, match="no_such_module"):
        machine.torch_facts()


@pytest.mark.parametrize("setting", [{"method.adapter": "qlora"}, {"model.dtype": "nf4"}])
def test_qlora_is_refused_without_cuda_with_what_to_type(
    monkeypatch: pytest.MonkeyPatch, setting: dict[str, str]
) -> None:
    recipe = recipes.with_values(Recipe(), setting)
    monkeypatch.setattr(machine, "torch_facts", lambda: {"cuda": True})
    machine.able(recipe)
    monkeypatch.setattr(machine, "torch_facts", lambda: {"cuda": False})
    with pytest.raises(UsageError, match=r"without CUDA.*method\.adapter=lora"):
        machine.able(recipe)
    machine.able(Recipe())


def test_what_llama_cpp_could_not_serve_is_refused_before_it_is_trained(tmp_path: Path) -> None:
    llama = tiny_model(tmp_path / "llama")
    neox = tiny_model(tmp_path / "neox", family="gpt_neox")
    recipe = recipes.with_values(Recipe(), {"serve.engine": "llama.cpp"})
    machine.servable(recipe, llama)
    machine.servable(Recipe(), neox)
    with pytest.raises(UsageError, match=r"gpt_neox is none of.*serve\.engine=local"):
        machine.servable(recipe, neox)
    for key, value in (("adapter", "dora"), ("embeddings", True), ("modules_to_save", ("norm",))):
        other = recipes.with_values(recipe, {f"method.{key}": value})
        with pytest.raises(UsageError, match="have no form in GGUF"):
            machine.servable(other, llama)
    machine.servable(recipes.with_values(recipe, {"method.adapter": "full"}), llama)
