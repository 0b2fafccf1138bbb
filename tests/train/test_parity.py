from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

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
    written = json.loads((tmp_path / "parity.json").read_text())
    assert written["dtype"] == "float32"
    assert 0 < written["noise"]["mean"] < written["noise"]["largest"] < 1e-4
    recorded = written["rows"]
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
    (item,) = json.loads((tmp_path / "parity.json").read_text())["rows"]
    assert template.decode(item["ids"]) == "last"
    assert len(item["logprobs"]) == len(item["ids"])


@pytest.mark.parametrize(("longest", "wanted"), [(150, None), (1, 1)])
def test_longer_rows_are_passed_over_but_never_all_of_them(
    tiny: Callable[..., Path],
    rows: Callable[[int], list[Conversation]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    longest: int,
    wanted: int | None,
) -> None:
    model = load(tiny(), dtype="float32")
    made = methods.sft(rows(20), model.template)
    lengths = [len(chain.ids) for (chain,) in made]
    monkeypatch.setattr(parity, "MAX_TOKENS", longest)
    parity.record(model, made, tmp_path / "parity.json")
    recorded = json.loads((tmp_path / "parity.json").read_text())["rows"]
    short = [index for index, length in enumerate(lengths) if length <= longest][: parity.ROWS]
    assert 0 < len(short) < 20 or wanted
    assert [item["row"] for item in recorded] == (short or [lengths.index(min(lengths))])
