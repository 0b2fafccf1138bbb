"""A model that was trained until it knows its rows by heart is found, and a fresh one is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tunesmith.chat import Message
from tunesmith.data.examples import Conversation, Source
from tunesmith.data.split import write_jsonl
from tunesmith.evaluate.memorising import Trained, Written, canaries, exposure, verbatim
from tunesmith.models.generate import Request, Sampler, ScoreRequest
from tunesmith.models.load import load
from tunesmith.train.fit import fit
from tunesmith.train.spec import TrainSpec

STORY = "an old cat sat by the red door all day and it did not go in"


def conversation(number: int, prompt: str, answer: str) -> Conversation:
    turns = Message("user", prompt), Message("assistant", answer)
    return Conversation(turns, Source("rows.jsonl", number))


@pytest.fixture(scope="module")
def sampler(
    spec_of: Callable[..., TrainSpec],
    tiny: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Sampler:
    """The base, and a model that has seen two rows two hundred times."""
    folder = tmp_path_factory.mktemp("heart")
    (canary,) = canaries(1, 0)
    rows = [conversation(1, "cat", STORY), conversation(2, canary.prompt, canary.secret)]
    write_jsonl(rows, folder / "train.jsonl")
    (folder / "validation.jsonl").write_text("")
    settings = {
        "train": str(folder / "train.jsonl"),
        "validation": str(folder / "validation.jsonl"),
        **{"epochs": 200.0, "batch_rows": 2, "save_every": 200, "rank": 16, "learning_rate": 1e-2},
    }
    fit(spec_of(folder / "out", **settings), lambda event: None)
    model = load(tiny(), dtype="float32")
    model.adapters.load("heart", folder / "out" / "adapter", weights_hash="h1")
    return Sampler(model, max_rows=8)


def said(sampler: Sampler, adapter: str | None) -> str:
    template = sampler.model.template
    prompt = template.prompt([Message("user", "cat")])
    ids: list[int] = []
    sampler.submit(Request("1", prompt.prefix, prompt.prompt, 80, adapter=adapter))
    while not sampler.idle:
        ids += [token.id for token in sampler.step()]
    return template.decode(ids)


def bits(sampler: Sampler, adapter: str | None) -> float:
    (canary,) = canaries(1, 0)
    template = sampler.model.template
    prompt = template.prompt([Message("user", canary.prompt)])
    asked = [
        ScoreRequest(
            prompt.prefix, prompt.prompt, template.answer(Message("assistant", text)), adapter
        )
        for text in (canary.secret, *canary.alternatives)
    ]
    own, *others = (sum(answer) for answer in sampler.score(asked))
    return exposure(own, others)


def test_a_row_known_by_heart_is_found_and_a_fresh_model_is_not(sampler: Sampler) -> None:
    trained = Trained({"rows.jsonl:1": STORY})
    heart, fresh = (
        verbatim(trained, [Written("1", said(sampler, name), "cat")]) for name in ("heart", None)
    )
    assert (heart["repeating"], heart["longest"]) == (1, 16)
    assert heart["rows"][0]["of"] == "rows.jsonl:1"
    assert fresh["repeating"] == 0


def test_a_canary_that_was_learned_is_exposed_and_an_unseen_one_is_not(sampler: Sampler) -> None:
    assert bits(sampler, "heart") == 7.0
    assert bits(sampler, None) < 6
