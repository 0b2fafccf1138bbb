from __future__ import annotations

import pytest

from tunesmith import recipe as recipes
from tunesmith.errors import TrainingError, UsageError
from tunesmith.pipeline import machine
from tunesmith.recipe import Recipe


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
