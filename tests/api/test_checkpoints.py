from __future__ import annotations

from typing import Any

import openai
import pytest

STEP = "ft:qwen/base:acme:desk:1:ckpt-step-2"


def test_a_checkpoint_is_shared_until_that_is_taken_back(served: Any, conforms: Any) -> None:
    served.store.register_model(
        STEP,
        base="base",
        base_hash="0",
        base_folder=served.home,
        adapter_folder=None,
        project="default",
    )
    ids = [served.store.keys.make("x", project=name)[0].project for name in "abc"]
    other = served.sdk(served.store.keys.make("x", project="a")[1])
    with pytest.raises(openai.NotFoundError):
        other.models.retrieve(STEP)
    permissions = served.sdk().fine_tuning.checkpoints.permissions
    made = permissions.create(STEP, project_ids=ids)
    conforms("ListFineTuningCheckpointPermissionResponse", made.to_dict(mode="json"))
    assert {item.project_id for item in made} == set(ids)
    permissions.create(STEP, project_ids=ids[:1])
    assert [item.project_id for item in permissions.list(STEP, limit=2)] == ids[::-1]
    up = permissions.list(STEP, limit=2, order="ascending")
    assert [item.project_id for item in up] == ids
    (one,) = permissions.list(STEP, project_id=ids[0])
    assert other.models.retrieve(STEP).id == STEP
    with pytest.raises(openai.PermissionDeniedError, match="not this project's own"):
        other.models.delete(STEP)
    with pytest.raises(openai.PermissionDeniedError, match="needs 'admin'"):
        other.fine_tuning.checkpoints.permissions.list(STEP)
    gone = permissions.delete(one.id, fine_tuned_model_checkpoint=STEP)
    conforms("DeleteFineTuningCheckpointPermissionResponse", gone.to_dict())
    with pytest.raises(openai.NotFoundError, match="No such checkpoint permission"):
        permissions.delete(one.id, fine_tuned_model_checkpoint=STEP)
    with pytest.raises(openai.NotFoundError):
        other.models.retrieve(STEP)
    with pytest.raises(openai.BadRequestError, match="no project 'nobody'"):
        permissions.create(STEP, project_ids=["nobody"])
    admin = served.stranger().fine_tuning.checkpoints.permissions
    with pytest.raises(openai.NotFoundError):
        admin.create(STEP, project_ids=ids)
    served.sdk().models.delete(STEP)
    assert served.store.jobs.permissions(STEP).rows == ()
