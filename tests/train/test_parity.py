from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tunesmith.chat import Message
from tunesmith.data.examples import Conversation
from tunesmith.models.generate import Sampler, ScoreRequest
from tunesmith.models.load import load
from tunesmith.models.template import Exchange
from tunesmith.testing import byte_template
from tunesmith.train import methods, parity


def test_trap_01_what_is_recorded_is_the_last_answer_as_it_is_served(
    tiny: Callable[..., Path], rows: Callable[[int], list[Conversation]], tmp_path: Path
) -> None:
    model = load(tiny(), dtype="float32")
    parity.record(model, methods.sft(rows(20), model.template), tmp_path / "parity.json")
    recorded = json.loads((tmp_path / "parity.json").read_text())
    assert [item["row"] for item in recorded] == list(range(parity.ROWS))
    sampler = Sampler(model)
    for item in recorded:
        row = rows(20)[item["row"]]
        prompt, answer = model.template.prompt(row.prompt), model.template.answer(row.answer)
        assert tuple(item["ids"]) == answer
        scored = sampler.score([ScoreRequest(prompt.prefix, prompt.prompt, answer)])[0]
        assert item["logprobs"] == pytest.approx(scored, abs=1e-4)


def test_only_the_last_turn_of_a_conversation_is_recorded(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    template = byte_template()
    turns = [Message(role, text) for role, text in (("user", "q"), ("assistant", "first"))] * 2
    chains = template.chains(Exchange((*turns[:3], Message("assistant", "last"))))
    parity.record(load(tiny(), dtype="float32"), [chains], tmp_path / "parity.json")
    (item,) = json.loads((tmp_path / "parity.json").read_text())
    assert template.decode(item["ids"]) == "last"
    assert len(item["logprobs"]) == len(item["ids"])


def test_rows_that_are_too_long_are_left_out(
    tiny: Callable[..., Path],
    rows: Callable[[int], list[Conversation]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = load(tiny(), dtype="float32")
    made = methods.sft(rows(4), model.template)
    lengths = [len(chain.ids) for (chain,) in made]
    monkeypatch.setattr(parity, "MAX_TOKENS", sorted(lengths)[1])
    with torch.no_grad():
        parity.record(model, made, tmp_path / "parity.json")
    recorded = json.loads((tmp_path / "parity.json").read_text())
    assert len(recorded) == 2
