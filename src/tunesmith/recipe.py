"""A run as one typed, frozen, YAML-readable value.

Only the pipeline and the command line read a Recipe; every other function takes what it uses.
Unknown keys are refused. `auto` is resolved before the first step and written back.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import (
    BaseModel,
    ValidationError,
    model_validator,
)

from tunesmith.errors import UsageError
from tunesmith.sections import (
    RETRIEVING,
    SFT,
    DataSection,
    Endpoint,
    EvaluateSection,
    FactsSection,
    ForgettingSection,
    Judge,
    Method,
    ModelSection,
    Section,
    ServeSection,
    TrainSection,
)


class Recipe(Section):
    """One run. `Recipe()` is the default; `read` merges files and settings over it."""

    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    method: Method = SFT()
    train: TrainSection = TrainSection()
    evaluate: EvaluateSection = EvaluateSection()
    forgetting: ForgettingSection = ForgettingSection()
    serve: ServeSection = ServeSection()
    facts: FactsSection = FactsSection()
    external: Endpoint | None = None
    """A model that the tuned one is held against; `--set external.base_url=...` names it."""
    proposer: Endpoint | None = None
    """A model that proposes instructions to the search for a prompt, from training rows."""
    judge: Judge | None = None
    """A model that judges the tuned arm against the base and the best other arm, pair by pair."""

    @model_validator(mode="after")
    def _four_bits(self) -> Recipe:
        if self.model.dtype == "nf4" and self.method.adapter not in ("lora", "qlora"):
            raise ValueError(f"adapter={self.method.adapter} with model.dtype=nf4: use qlora")
        four_bits = self.model.dtype == "nf4" or self.method.adapter == "qlora"
        if self.train.sharding == "full" and four_bits:
            raise ValueError("train.sharding=full with 4-bit weights: use method.adapter=lora")
        return self

    @model_validator(mode="after")
    def _named(self) -> Recipe:
        if "external" in self.evaluate.arms and self.external is None:
            raise ValueError("external among evaluate.arms, but not where: give external.base_url")
        return self

    @property
    def arms(self) -> tuple[str, ...]:
        """The arms that are measured: those named, with documents those that read, and an endpoint."""
        named = self.evaluate.arms
        reading = () if not self.data.docs or set(RETRIEVING) & set(named) else RETRIEVING
        outside = () if self.external is None or "external" in named else ("external",)
        return (*named, *reading, *outside)

    @property
    def reading(self) -> DataSection:
        """The data section with what the method means for it: pre-training reads text."""
        if self.method.type != "cpt":
            return self.data
        return self.data.model_copy(update={"format": "text"})

    @model_validator(mode="after")
    def _text(self) -> Recipe:
        if self.method.type == "cpt" and self.data.format not in ("auto", "text"):
            raise ValueError(f"data.format={self.data.format} with method.type=cpt: cpt reads text")
        return self


def read(path: Path | None = None, settings: Sequence[str] = ()) -> Recipe:
    """The recipe of a YAML file (or the defaults) with `key=value` settings over it.

    Raises:
        UsageError: the file does not parse, or a key or value is not known.
    """
    tree: dict[str, Any] = {}
    if path is not None:
        try:
            loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise UsageError(
                f"the recipe {path} cannot be read: {error}", expected="a YAML file"
            ) from None
        if not isinstance(loaded, dict):
            raise UsageError(
                f"the recipe {path} holds {type(loaded).__name__}", expected="a YAML mapping"
            )
        tree = loaded
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise UsageError(f"--set {setting}", expected="key=value, as in train.epochs=2")
        try:
            parsed = yaml.safe_load(value)
        except yaml.YAMLError:
            raise UsageError(f"--set {setting}", expected="a value that YAML reads") from None
        _put(tree, key.strip().split("."), parsed, setting)
    return parse(tree)


def parse(tree: Mapping[str, Any]) -> Recipe:
    """A Recipe from a mapping; unknown keys are refused with the nearest known one."""
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        said = first.get("ctx", {})
        if first["type"] == "union_tag_invalid":
            raise UsageError(
                f"the recipe key method.type is {said['tag']!r}",
                expected=f"one of {said['expected_tags']}",
            ) from None
        if first["type"] == "value_error":
            raise UsageError(f"the recipe says {said['error']}") from None
        section, *rest = (str(part) for part in first["loc"])
        # Behind `method` stands its type, and what follows a key says which part of a union failed:
        # neither is a word of the recipe.
        key = ".".join([section, *rest[section == "method" :][:1]])
        if first["type"] == "missing":
            raise UsageError(
                f"the recipe has no {key}", remedy=f"Type --set {key}=..., or leave {section} out."
            ) from None
        if first["type"] == "extra_forbidden":
            near = difflib.get_close_matches(key, [*Recipe.model_fields, *keys()], n=1, cutoff=0.5)
            raise UsageError(
                f"the recipe key {key} is not known",
                expected=f"one of {', '.join(_siblings(key))}",
                remedy=f"Did you mean {near[0]}?" if near else "",
            ) from None
        raise UsageError(
            f"the recipe key {key} is {first.get('input')!r}", expected=first["msg"].lower()
        ) from None


def dump(recipe: Recipe) -> str:
    """The recipe as YAML, every setting in force, defaults included."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def with_values(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """The recipe with dotted keys replaced: {"train.epochs": 3}."""
    tree = recipe.model_dump(mode="json")
    for key, value in values.items():
        _put(tree, key.split("."), value, key)
    return parse(tree)


def keys() -> list[str]:
    """Every dotted key that a recipe knows."""
    return [f"{name}.{key}" for name, section in sections().items() for key in section.model_fields]


def sections() -> dict[str, type[BaseModel]]:
    """The sections of a recipe and the class of each, also of one that is absent by default."""
    return {
        name: get_args(field.annotation)[0] if field.default is None else type(field.default)
        for name, field in Recipe.model_fields.items()
    }


def with_budgets(recipe: Recipe, asked: Recipe) -> Recipe:
    """The recipe with the budgets of `asked`: more may be spent on a run that has stopped for it."""
    changed = {
        f"{name}.budget_usd": getattr(asked, name).budget_usd
        for name, section in sections().items()
        if section is Endpoint and None not in (getattr(recipe, name), getattr(asked, name))
    }
    return with_values(recipe, changed)


def _siblings(key: str) -> list[str]:
    section = key.partition(".")[0]
    inside = [known for known in keys() if known.startswith(section + ".")]
    return inside or list(Recipe.model_fields)


def _put(tree: dict[str, Any], path: Sequence[str], value: Any, said: str) -> None:
    for part in path[:-1]:
        child = tree.get(part)
        if child is None:
            child = tree[part] = {}
        if not isinstance(child, dict):
            raise UsageError(f"--set {said}: {part} is not a section", expected="section.key=value")
        tree = child
    tree[path[-1]] = value
