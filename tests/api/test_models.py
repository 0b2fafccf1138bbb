from __future__ import annotations

from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from tunesmith.store import RegisteredModel, models

TUNED = "ft:base:me:run:1"


def test_the_default_base_is_listed_first(api: Any) -> None:
    async def test(client: AsyncOpenAI) -> None:
        listed = [model async for model in client.models.list()]
        assert [model.id for model in listed] == ["base", TUNED]
        assert all(model.created > 1_500_000_000 for model in listed)
        assert [model.owned_by for model in listed] == ["tunesmith", "acme"]

    api(test)


def test_a_model_is_shown_by_its_name(api: Any) -> None:
    async def test(client: AsyncOpenAI) -> None:
        for name in ("base", TUNED):
            assert (await client.models.retrieve(name)).id == name
        with pytest.raises(openai.NotFoundError) as caught:
            await client.models.retrieve("unknown/model")
        assert caught.value.code == "model_not_found"

    api(test)


def register(served: Any, name: str, folder: Path, **more: Any) -> RegisteredModel:
    model = RegisteredModel(name, "base", "00", str(served.home), str(folder), None, 5e9, **more)
    with served.store._engine.begin() as connection:
        models.register(connection, model)
    return model


def test_models_are_listed_shown_and_deleted_with_their_weights(served: Any, conforms: Any) -> None:
    client = served.sdk()
    folders = [served.home / "jobs" / "ftjob-1" / name for name in ("adapter", "step-1")]
    for folder in folders:
        folder.mkdir(parents=True)
    last, first = "ft:qwen/b:acme:x:1", "ft:qwen/b:acme:x:1:ckpt-step-1"
    register(served, last, folders[0], project="default")
    register(served, f"{last}:ckpt-step-2", folders[0], project="default")
    register(served, first, folders[1], project="default")
    listed = client.models.list()
    conforms("ListModelsResponse", listed.to_dict(mode="json"))
    assert next(iter(listed)).id == "base"
    assert {item.owned_by for item in listed if item.id != "base"} == {"acme"}
    assert client.models.retrieve("gpt-4o-mini").id == "gpt-4o-mini"
    assert "gpt-4o-mini" not in {item.id for item in listed}
    conforms("DeleteModelResponse", client.models.delete(first).to_dict())
    client.models.delete(last)
    assert [folder.is_dir() for folder in folders] == [True, False]
    client.models.delete(f"{last}:ckpt-step-2")
    assert not folders[0].exists()
    assert [item.id for item in client.models.list()] == ["base"]


def test_what_is_not_ones_own_to_delete_stays(served: Any, rows: bytes) -> None:
    client = served.sdk()
    elsewhere = served.home / "runs" / "1"
    elsewhere.mkdir(parents=True)
    register(served, "ft:cli", elsewhere)
    register(served, "ft:mine", elsewhere, project="default")
    file = client.files.create(file=("a.jsonl", rows), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(model="base", training_file=file.id)
    register(served, "ft:step", elsewhere, project="default", job=job.id)
    for name in ("base", "gpt-4o-mini", "ft:cli"):
        with pytest.raises(openai.PermissionDeniedError):
            client.models.delete(name)
    with pytest.raises(openai.ConflictError, match=f"{job.id}, which is validating_files"):
        client.models.delete("ft:step")
    stranger = served.stranger()
    assert {item.id for item in stranger.models.list()} == {"base", "ft:cli"}
    for name in ("ft:mine", "no/such", "x" * 5_000):
        with pytest.raises(openai.NotFoundError, match="does not exist"):
            stranger.models.delete(name)
    client.models.delete("ft:mine")
    assert elsewhere.is_dir()
