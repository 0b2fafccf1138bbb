from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunesmith.chat import Message
from tunesmith.checks.row import look
from tunesmith.data.examples import Conversation, Source
from tunesmith.models.catalog import ModelSpec
from tunesmith.models.template import ChatTemplate
from tunesmith.pipeline import quality
from tunesmith.pipeline.folder import RunFolder
from tunesmith.serve import engines


def conversation(line: int, prompt: str, answer: str) -> Conversation:
    messages = (Message("user", prompt), Message("assistant", answer))
    return Conversation(messages, Source("rows.jsonl", line))


def banking(path: Path, count: int, labels: int) -> list[Conversation]:
    """Rows of the most frequent labels."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    names = sorted({line["label"] for line in lines})[:labels]
    picked = [line for line in lines if line["label"] in names][:count]
    return [conversation(n, line["text"], line["label"]) for n, line in enumerate(picked, 1)]


def flipped(rows: list[Conversation], share: float) -> tuple[list[Conversation], set[str]]:
    rng = random.Random(0)
    labels = sorted({row.answer.content or "" for row in rows})
    wrong = rng.sample(range(len(rows)), int(share * len(rows)))
    for place in wrong:
        row = rows[place]
        others = [label for label in labels if label != row.answer.content]
        rows[place] = conversation(row.source.line, row.prompt[0].content or "", rng.choice(others))
    return rows, {look(rows[place]).where for place in wrong}


def see(rows: list[Conversation], encoder: Path | None, tmp_path: Path) -> quality.Seen:
    async def go() -> quality.Seen:
        spec = None if encoder is None else ModelSpec("encoder", encoder, "r", "h")
        log = tmp_path / "log"
        async with quality.embedding(spec, log=log, told=lambda *_: None) as embed:
            return await quality.see([look(row) for row in rows], embed, seed=0)

    return asyncio.run(go())


def test_flipped_labels_of_real_rows_are_found_by_words_alone(
    shared: Callable[[str], Path], tmp_path: Path
) -> None:
    rows, wrong = flipped(banking(shared("banking77/train.jsonl"), 500, 10), 0.05)
    found = quality.judge(see(rows, None, tmp_path), 0)
    named = {suspect.row for suspect in found.suspects}
    assert len(named & wrong) >= 0.6 * len(wrong)
    assert len(named & wrong) >= 0.6 * len(named)
    assert found.numbers["by"] == "words"


def test_flipped_labels_and_foreign_rows_are_found_by_meaning(
    shared: Callable[[str], Path], sentence_encoder: Path, tmp_path: Path
) -> None:
    rows, wrong = flipped(banking(shared("banking77/train.jsonl"), 160, 5), 0.05)
    rows.append(conversation(9001, "How do I boil an egg?", rows[0].answer.content or ""))
    found = quality.judge(see(rows, sentence_encoder, tmp_path), 0)
    named = {suspect.row for suspect in found.suspects if suspect.check == "labels"}
    assert len(named & wrong) >= 0.75 * len(wrong)
    assert len(named & wrong) >= 0.75 * len(named)
    assert "rows.jsonl:9001" in {s.row for s in found.suspects if s.check == "outliers"}
    assert found.numbers["by"] == "meaning"
    assert 5 < found.numbers["vendi_score"] < 160


def test_vectors_stop_when_the_time_is_over_and_say_of_which_rows_they_are(
    tiny_encoder: Path, tmp_path: Path
) -> None:
    rows = [look(conversation(n, f"parcel {n}", f"answer {n}")) for n in range(600)]

    async def go() -> quality.Seen:
        spec = ModelSpec("tiny", tiny_encoder, "r", "h")
        async with quality.embedding(spec, log=tmp_path / "log", told=lambda *_: None) as embed:
            return await quality.see(rows, embed, seed=0, seconds=1e-9)

    seen = asyncio.run(go())
    assert len(seen.rows) == quality.PIECE == len(seen.prompts)
    assert seen.answers is not None
    assert [row.example.source.line for row in seen.rows] == sorted(
        row.example.source.line for row in seen.rows
    )


def asked_base(
    model: Path, templates: list[ChatTemplate], rows: list[Conversation], log: Path
) -> list[quality.Looked]:
    async def go() -> list[quality.Looked]:
        async with await engines.start(engines.EngineSpec(model, "base"), log=log) as engine:
            base = engine.chat()
            asked = [quality.ask_base(base, each, rows, seed=0, most=6) for each in templates]
            return [await looked for looked in asked]

    return asyncio.run(go())


@pytest.mark.slow
def test_a_foreign_chat_template_is_found_on_the_default_model_and_its_own_is_not(
    default_model: Path, tmp_path: Path
) -> None:
    rows = [conversation(n, f"Where is my parcel {n}?", "It is on its way.") for n in range(6)]
    own = ChatTemplate.load(default_model)
    alpaca = (
        "{% for m in messages %}{% if m['role'] == 'user' %}### Instruction:\n{{ m['content'] }}"
        "{% else %}\n\n### Response:\n{{ m['content'] }}<|im_end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}\n\n### Response:\n{% endif %}"
    )
    foreign = ChatTemplate(own.tokenizer, alpaca, specials={}, stops=own.end_of_turn, context=2048)
    found, other = asked_base(default_model, [own, foreign], rows, tmp_path / "log")
    assert found.numbers["template_nats"] < 0.1
    assert not [finding for finding in found.findings if finding.check == "template"]
    assert other.numbers["template_nats"] > 1.5
    assert [f.severity for f in other.findings if f.check == "template"] == ["warning"]


def test_the_base_says_what_each_answer_and_the_template_cost(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    model = tiny()
    rows = [conversation(n, f"say {n}", "four") for n in range(8)]
    (found,) = asked_base(model, [ChatTemplate.load(model)], rows, tmp_path / "log")
    # A random model of 260 tokens: about log(260) nats, more as its weights are large.
    assert 2 < found.numbers["answer_nats"] < 20
    assert "template" in {finding.check for finding in found.findings}


def test_what_is_found_joins_the_findings_of_the_run_once(tmp_path: Path, screen: Any) -> None:
    folder = RunFolder(tmp_path)
    folder.write_json("findings.json", [])
    rows, wrong = flipped(
        [conversation(n, f"{'ab'[n % 2] * 9} {n}", "xy"[n % 2]) for n in range(80)], 0.05
    )
    for _ in range(2):
        quality.glance(folder, rows, seconds=5, seed=0, screen=screen)
    findings = folder.read_json("findings.json")
    assert [set(finding) for finding in findings] == [
        {"check", "severity", "rows", "message", "remedy"}
    ]
    assert set(findings[0]["rows"]) == wrong
    assert {row["row"] for row in folder.read_json("quality.json")["suspects"]} == wrong
    assert len([said for said in screen.said if said.startswith("looked closer at 80 of 80")]) == 1
    quality.keep(folder, quality.judge(see(rows, None, tmp_path), 0), screen)
    assert folder.read_json("findings.json") == findings


def test_no_seconds_leave_the_closer_look_out(tmp_path: Path, screen: Any) -> None:
    quality.glance(RunFolder(tmp_path), [], seconds=0, seed=0, screen=screen)
    assert list(tmp_path.iterdir()) == []


def test_the_last_turn_is_what_a_row_asks_first() -> None:
    turns = ("system", "Be brief."), ("user", "one"), ("assistant", "two"), ("user", "three")
    messages = tuple(Message(role, text) for role, text in (*turns, ("assistant", "four")))
    assert quality.asked(look(Conversation(messages, Source("f", 1)))) == "three\ntwo\none"
