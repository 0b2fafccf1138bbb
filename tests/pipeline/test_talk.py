from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tunesmith.chat import Message
from tunesmith.data.examples import Conversation, Source
from tunesmith.data.split import write_jsonl
from tunesmith.errors import ModelError
from tunesmith.pipeline import talk
from tunesmith.store import Store


def conversation(system: str | None) -> Conversation:
    turns = (Message("user", "q"), Message("assistant", "a"))
    first = (Message("system", system),) if system else ()
    return Conversation((*first, *turns), Source("rows.jsonl", 1))


def test_a_name_is_a_registered_model_or_a_base(at_home: Any, model: Path) -> None:
    tuned = at_home.report["model"]["tuned"]
    with Store.at(at_home.home) as store:
        found = talk.deployment(store, tuned)
        assert (found.name, found.base, found.adapter) == (tuned, "tiny", at_home.folder.adapter)
        base = talk.deployment(store, str(model))
        assert (base.name, base.base_folder, base.adapter) == ("tiny", model, None)
        with pytest.raises(ModelError, match="no model 'nobody'"):
            talk.deployment(store, "nobody")


def test_a_tuned_model_is_asked_under_the_system_message_it_saw_most(
    at_home: Any, tmp_path: Path
) -> None:
    with Store.at(at_home.home) as store:
        model = store.model(at_home.report["model"]["tuned"])
    assert model is not None
    assert talk.usual_system(model) is None
    assert talk.usual_system(None) is None
    other = replace(model, adapter_folder=str(tmp_path / "adapter"))
    assert talk.usual_system(other) is None
    (tmp_path / "data").mkdir()
    rows = [conversation(system) for system in ("be brief", None, "be brief", "be long")]
    write_jsonl(rows, tmp_path / "data" / "train.jsonl")
    assert talk.usual_system(other) == "be brief"


def test_a_conversation_remembers_what_was_said(
    at_home: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked the same twice, the second answer has the first in its prompt; then input ends."""
    lines: Iterator[str] = iter(["say 3", "say 3"])

    def read(_: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", read)
    shown: list[str] = []
    with Store.at(at_home.home) as store:
        place = talk.deployment(store, at_home.report["model"]["tuned"])
    asyncio.run(talk.talk(place, system="s", temperature=0.0, once=None, show=shown.append))
    assert len(shown) == 2
    assert all(text.endswith("\n") for text in shown)


def test_an_answer_that_does_not_end_is_cut_and_said_to_be(at_home: Any, model: Path) -> None:
    answers: list[str] = []
    notes: list[str] = []
    with Store.at(at_home.home) as store:
        base = talk.deployment(store, str(model))
    coming = talk.talk(
        base,
        system=None,
        temperature=0.0,
        once="say 3",
        show=answers.append,
        note=notes.append,
        max_tokens=3,
    )
    asyncio.run(coming)
    assert len(answers) == 1
    assert notes == ["cut at 3 tokens; --max-tokens N allows more"]
