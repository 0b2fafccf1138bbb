from __future__ import annotations

import re

from tunesmith.models.catalog import DEFAULT, PACKAGED
from tunesmith.recipe import Recipe


def test_the_default_is_in_the_catalogue_and_is_the_recipes_default() -> None:
    assert DEFAULT in PACKAGED
    assert Recipe().model.name == DEFAULT


def test_every_entry_is_pinned_by_version_and_hash_and_names_its_licence() -> None:
    for name, model in PACKAGED.items():
        assert model.name == name
        assert re.fullmatch(r"[0-9a-f]{64}", model.sha256)
        assert re.fullmatch(r"\d+\.\d+\.\d+", model.version)
        assert model.licence
        assert model.megabytes > 0


def test_the_default_says_that_it_is_not_the_hubs_model() -> None:
    assert "not the hub's weights" in PACKAGED[DEFAULT].note
