from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tunesmith import recipe
from tunesmith.errors import UsageError
from tunesmith.recipe import Recipe
from tunesmith.sections import CPT, SFT

NAMED: dict[str, Any] = {
    "base_url": "https://there/v1",
    "model": "large",
    "key_env": "THEIR_KEY",
    "max_tokens": 2000,
    "usd_per_1m_in": 0.5,
    "usd_per_1m_out": 1.5,
    "budget_usd": 2.0,
}
"""An endpoint: its section is absent by default, and the server and the model are required."""
CHANGED: dict[str, Any] = {
    "model.name": "owner/model",
    "model.revision": "abc",
    "model.dtype": "float32",
    "data.files": ["a.jsonl", "-"],
    "data.docs": ["pages"],
    "data.format": "text",
    "data.map": {"prompt": "question"},
    "data.validation": 0.2,
    "data.test": "test.jsonl",
    "data.on_error": "skip",
    "data.too_long": "drop",
    "data.duplicates": "keep",
    "data.max_bad": 0.5,
    "data.max_tokens": 100,
    "data.limit": 10,
    "data.quality_seconds": 5.0,
    "method.type": "cpt",
    "method.adapter": "dora",
    "method.embeddings": True,
    "method.modules_to_save": ["norm"],
    "method.rank": 8,
    "method.alpha": 16.0,
    "method.rslora": True,
    "method.dropout": 0.1,
    "method.targets": ["q_proj"],
    "train.epochs": 2.5,
    "train.batch_rows": 4,
    "train.learning_rate": 5e-05,
    "train.warmup": 0.0,
    "train.weight_decay": 0.01,
    "train.clip": 0.5,
    "train.patience": 0,
    "train.save_every": 7,
    "train.max_batch_tokens": 512,
    "train.share": False,
    "train.activation_checkpointing": True,
    "train.processes": 2,
    "train.sharding": "full",
    "train.replay": 0.1,
    "train.canaries": 4,
    "train.seed": 3,
    "evaluate.arms": ["base", "tuned"],
    "evaluate.graders": ["exact"],
    "evaluate.limit": 5,
    "evaluate.goal": 0.8,
    "evaluate.curve": True,
    "evaluate.max_tokens": 32,
    "forgetting.probe": False,
    "forgetting.probes": ["own.jsonl"],
    "forgetting.limit": 7,
    "forgetting.tradeoff": False,
    "forgetting.max_kl": 0.2,
    "forgetting.max_loss": 0.05,
    "evaluate.forecast": False,
    "evaluate.prompt_budget": 10,
    "serve.suffix": "desk",
    "facts.knowledge_changes": "weekly",
    "facts.task_frequency": "rare",
    "facts.calls_per_month": 1000.0,
    "facts.latency_p95": 0.5,
    "facts.data_may_leave": "no",
    "facts.usd_per_hour": 0.25,
    **{
        f"{section}.{key}": value
        for section in ("external", "proposer", "judge")
        for key, value in NAMED.items()
    },
    "judge.rubric": "The shorter one.",
    "judge.rows": 7,
}
ONE_VALUE = {"serve.engine"}
"""Keys with a single value so far."""


def test_defaults_go_out_and_come_back(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.dump(Recipe()), encoding="utf-8")
    assert recipe.read(path) == Recipe() == recipe.read()


def test_trap_31_every_key_is_in_force_in_the_file(tmp_path: Path) -> None:
    assert set(CHANGED) | ONE_VALUE == set(recipe.keys())
    changed = recipe.with_values(Recipe(), CHANGED)
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.dump(changed), encoding="utf-8")
    assert recipe.read(path) == changed
    written = yaml.safe_load(path.read_text())
    for key, value in CHANGED.items():
        section, _, name = key.partition(".")
        assert written[section][name] == value
        usual = getattr(getattr(Recipe(), section), name, None)
        assert usual != getattr(getattr(changed, section), name)


@pytest.mark.parametrize("key", sorted(CHANGED))
def test_every_key_can_be_set_from_the_command_line(key: str) -> None:
    section = key.split(".")[0]
    absent = getattr(Recipe(), section) is None
    beside = {f"{section}.{name}": value for name, value in NAMED.items()} if absent else {}
    values = {**beside, key: CHANGED[key]}
    settings = [f"{name}={json.dumps(value)}" for name, value in values.items()]
    assert recipe.read(None, settings) == recipe.with_values(Recipe(), values)


# PyYAML writes U+0085, a line break to YAML, as it is.
texts = st.text(st.characters(codec="utf-8", exclude_characters="\x85"))


@given(st.floats(1e-7, 1), st.integers(0, 2**31), texts)
def test_any_value_goes_out_and_comes_back(rate: float, seed: int, name: str) -> None:
    values = {"train.learning_rate": rate, "train.seed": seed, "data.files": [name]}
    changed = recipe.with_values(Recipe(), values)
    assert recipe.parse(yaml.safe_load(recipe.dump(changed))) == changed


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"train": {"learning_rat": 1}}, r"train\.learning_rat is not known.*Did you mean train\.learning_rate\?"),
        ({"method": {"lora_rank": 4}}, r"method\.lora_rank is not known; expected one of method\.type"),
        ({"trian": {"epochs": 1}}, r"trian is not known; expected one of model, data.*mean train\?"),
        ({"train": {"epochs": "many"}}, r"the recipe key train\.epochs is 'many'"),
        ({"train": {"warmup": 2}}, r"train\.warmup is 2; expected input should be less than or equal to 1"),
        ({"method": {"dropout": 1.0}}, r"method\.dropout is 1\.0"),
        ({"method": {"type": "magic"}}, r"method\.type is 'magic'; expected one of 'sft', 'cpt'"),
        ({"method": {"type": "cpt", "rank": "x"}}, r"the recipe key method\.rank is 'x'"),
        ({"method": {"type": "cpt"}, "data": {"format": "chat"}}, r"data\.format=chat with method\.type=cpt"),
        ({"method": {"adapter": "full", "rank": 8}}, r"adapter=full without rank: there is no"),
        ({"method": {"adapter": "full"}, "model": {"dtype": "nf4"}}, r"model\.dtype=nf4: use qlora"),
        ({"method": {"adapter": "qlora"}, "train": {"sharding": "full"}}, r"full with 4-bit weights"),
        ({"serve": {"suffix": "Not Good"}}, r"serve\.suffix is 'Not Good'"),
        ({"external": {"model": "m"}}, r"has no external\.base_url\. Type --set external\.base_url="),
        ({"external": {**NAMED, "usd_per_1m_in": None}}, r"budget_usd without usd_per_1m_in and"),
        ({"external": {**NAMED, "base_url": "there"}}, r"give it as in https://"),
        ({"external": {**NAMED, "nmae": 1}}, r"external\.nmae is not known; expected one of external"),
        ({"evaluate": {"arms": ["external"]}}, r"give external\.base_url"),
    ],
)  # fmt: skip
def test_trap_31_what_is_not_known_is_refused(tree: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        recipe.parse(tree)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("train.epochs", "expected key=value"),
        ("train.epochs=[1", "a value that YAML reads"),
        ("train.epochs.more=1", "train.epochs"),
        ("epochs=1", "epochs is not known"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(setting: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        recipe.read(None, [setting])


def test_settings_stand_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("train: {epochs: 2, seed: 1}\n")
    got = recipe.read(path, ["train.seed=5", "train.learning_rate=1e-3", "data.validation=40"])
    assert (got.train.epochs, got.train.seed) == (2, 5)
    assert got.train.learning_rate == 1e-3
    assert got.data.validation == 40


@pytest.mark.parametrize("content", ["- a list", "a: [b", "\x00"])
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(content)
    with pytest.raises(UsageError, match=r"recipe\.yaml"):
        recipe.read(path)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        recipe.read(tmp_path / "none.yaml")


def test_a_recipe_does_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Recipe().train.seed = 4  # pyright: ignore[reportAttributeAccessIssue]


def test_every_key_is_explained() -> None:
    for section in [*recipe.sections().values(), CPT]:
        for name, field in section.model_fields.items():
            assert field.description, name


def test_pre_training_reads_text_and_shares_the_settings_of_the_adapter() -> None:
    asked = recipe.read(None, ["method.type=cpt", "method.rank=8"])
    assert (asked.method, asked.reading.format) == (CPT(rank=8), "text")
    assert set(CPT.model_fields) == set(SFT.model_fields)
    assert recipe.read().reading == recipe.read().data
    assert recipe.read(None, ["data.format=text"]).method == SFT()


@pytest.mark.parametrize("secret", ["sk-proj-abc123", "abcdef0123456789", "Sk_live_1"])
def test_a_key_in_the_place_of_its_variables_name_is_refused_and_not_repeated(secret: str) -> None:
    with pytest.raises(UsageError, match="never the key itself") as refused:
        recipe.parse({"external": {**NAMED, "key_env": secret}})
    assert secret not in str(refused.value)
    with pytest.raises(UsageError, match="base_url that is none") as refused:
        recipe.parse({"external": {**NAMED, "base_url": f"https://me:{secret}@there/v1"}})
    assert secret not in str(refused.value)


def test_a_named_endpoint_takes_part_and_can_be_taken_out_again() -> None:
    named = recipe.with_values(Recipe(), {"external": NAMED})
    assert named.external is not None
    assert (named.external.base_url, named.arms[-1]) == ("https://there/v1", "external")
    assert recipe.with_values(named, {"evaluate.arms": ["external"]}).arms == ("external",)
    assert recipe.with_values(named, {"external": None}).arms == Recipe().evaluate.arms
    assert recipe.parse({"external": {**NAMED, "base_url": "http://there/v1/"}}) == recipe.parse(
        {"external": {**NAMED, "base_url": "http://there/v1"}}
    )


def test_the_budget_of_a_recipe_can_be_raised_and_nothing_else() -> None:
    kept = recipe.with_values(Recipe(), {"external": NAMED})
    other = {"external.budget_usd": 9.0, "external.model": "x", "train.seed": 5}
    raised = recipe.with_budgets(kept, recipe.with_values(kept, other))
    assert raised == recipe.with_values(kept, {"external.budget_usd": 9.0})
    assert recipe.with_budgets(kept, Recipe()) == kept
