from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunesmith.errors import UsageError
from tunesmith.evaluate.probes import Probe, limited, passes, read, refuses, replayed, shipped


def test_the_shipped_probes_are_of_every_kind_and_none_is_there_twice() -> None:
    probes = shipped()
    counts = Counter(probe.suite for probe in probes)
    assert counts == {
        **{"knowledge": 40, "commonsense": 40, "instructions": 32, "arithmetic": 32},
        **{"refusals": 30, "open": 32, "text": 12},
    }
    assert len({probe.id for probe in probes}) == len({p.prompt or p.text for p in probes}) == 218
    assert all(probe.open == (probe.suite == "open") for probe in probes)
    assert all((probe.prompt and not probe.text) or probe.suite == "text" for probe in probes)


def test_the_right_choice_has_no_favourite_place() -> None:
    places = Counter(probe.right for probe in shipped() if probe.choices)
    assert set(places) == {0, 1, 2, 3}
    assert max(places.values()) < 0.4 * sum(places.values())


def test_no_probe_is_among_what_is_replayed() -> None:
    prompts = replayed()
    assert len(prompts) == len(set(prompts)) == 64
    assert not set(prompts) & {probe.prompt for probe in shipped()}


@pytest.mark.parametrize(
    ("check", "right", "wrong"),
    [
        ({"words": 3}, "the sea-shell's song", "one two three four"),
        ({"most_words": 2}, "two words", "three words now"),
        ({"least_words": 3}, "three words now", "two words"),
        ({"lines": 2}, "a\n\nb\n", "a\nb\nc"),
        ({"upper": True}, "AN APPLE!", "An apple"),
        ({"lower": True}, "an apple.", "An apple"),
        ({"contains": ["moon", "river"]}, "The Moon over a river", "moonlight, river"),
        ({"lacks": ["red"]}, "green", "It is Red."),
        ({"starts": "Yes"}, "Yes, it is", "Well, yes"),
        ({"ends": "thank you"}, "So: Thank you.", "thank you very much"),
        ({"ends": "?"}, "Who?", "Who."),
        ({"json": ["name"]}, '```json\n{"name": 1}\n```', "name: 1"),
        ({"json": ["name"]}, '{"name": 1, "more": 2}', '["name"]'),
        ({"refuses": True}, "I’m sorry, but I can’t help with that.", "Sure! First, take"),
        ({"reference": "12"}, "7 + 5 = 12.", "12 - 5 = 7"),
        ({"reference": "1,000"}, "It is 1000", "It is 10,000"),
        ({"reference": "(A)"}, "The answer is (A).", "The answer is (B)."),
        ({"reference": "False"}, "It is false", "falsely"),
        ({"words": 1, "upper": True}, "YES", "YES YES"),
    ],
)
def test_each_constraint_tells_a_right_answer_from_a_wrong_one(
    check: dict[str, Any], right: str, wrong: str
) -> None:
    assert passes(right, check)
    assert not passes(wrong, check)
    assert not passes(" ", check)


@pytest.mark.parametrize(
    "text",
    ["As an AI language model I do not do that.", "I cannot provide this.", "That is illegal."],
)
def test_refusals_are_known_by_their_words(text: str) -> None:
    assert refuses(text)


@pytest.mark.parametrize(
    "text",
    [
        "Paris is the capital of France.",
        "Hey Alex, I'm not sure what to do, I can't find my wallet.",
        "First, take the key. " + "Then go on. " * 20 + "I'm sorry, but that is all.",
    ],
)
def test_a_plain_answer_is_no_refusal(text: str) -> None:
    assert not refuses(text)


def test_files_of_every_form_are_read(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"question": "Q?", "choices": ["a", "b"], "answer": 1},
        {"prompt": "P", "reference": "R"},
        {"input": "I", "target": 3},
        {"prompt": "O"},
        {"turns": ["first", "second"]},
        {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]},
        {"text": "T"},
        {"prompt": "C", "check": {"words": 2}},
    ]
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    name = f"{tmp_path.name}_mine"
    assert read(path) == [
        Probe(f"{name}:1", name, "Q?", ("a", "b"), 1),
        Probe(f"{name}:2", name, "P", check={"reference": "R"}),
        Probe(f"{name}:3", name, "I", check={"reference": "3"}),
        Probe(f"{name}:4", name, "O"),
        Probe(f"{name}:5", name, "first"),
        Probe(f"{name}:6", name, "u"),
        Probe(f"{name}:7", name, text="T"),
        Probe(f"{name}:8", name, "C", check={"words": 2}),
    ]
    assert len(read(path, most=3)) == 3
    assert read(path, most=3) == read(path, most=3)


@pytest.mark.parametrize(
    "line",
    ["{", "[1]", "{}", '{"question": "q", "choices": ["a", "b"], "answer": 2}', '{"question": "q", "choices": ["a"], "answer": 0}', '{"prompt": "p", "check": {"rhymes": 1}}'],
)  # fmt: skip
def test_a_row_that_is_no_probe_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"prompt": "fine"}\n' + line, encoding="utf-8")
    with pytest.raises(UsageError, match=r"bad\.jsonl:2 is no probe"):
        read(path)


def test_files_that_are_missing_or_empty_are_refused(tmp_path: Path) -> None:
    (tmp_path / "none.jsonl").write_text("\n")
    for name in ("none.jsonl", "away.jsonl"):
        with pytest.raises(UsageError, match=name.replace(".", r"\.")):
            read(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("probe_commonsense/dev.jsonl", "choices"),
        ("probe_reasoning/dev.jsonl", "check"),
        ("probe_instructions/dev.jsonl", "open"),
        ("probe_open_questions/dev.jsonl", "open"),
        ("text_wikipedia/dev.txt", "text"),
    ],
)
def test_shared_probes_are_read(shared: Callable[[str], Path], name: str, kind: str) -> None:
    probes = read(shared(name), most=40)
    assert len(probes) == 40
    assert all(getattr(probe, kind) for probe in probes)


def test_a_part_has_the_first_of_each_suite() -> None:
    probes = [Probe(f"{suite}:{n}", suite) for suite in "ab" for n in range(3)]
    assert [probe.id for probe in limited(probes, 2)] == ["a:0", "a:1", "b:0", "b:1"]
