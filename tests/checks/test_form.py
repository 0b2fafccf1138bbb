from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tunesmith.chat import Message
from tunesmith.checks.form import Form
from tunesmith.checks.row import look
from tunesmith.checks.tokens import refiner
from tunesmith.data.dataset import Dataset, read
from tunesmith.data.examples import Conversation, Preference, Source
from tunesmith.models.template import ChatTemplate

Talk = Callable[..., Conversation]
Make = Callable[[int], Dataset]


@pytest.fixture
def rows(tmp_path: Path) -> Make:
    def make(count: int) -> Dataset:
        lines = [json.dumps({"prompt": f"q{n}", "completion": f"a{n}"}) for n in range(count)]
        path = tmp_path / f"{count}.jsonl"
        path.write_text("\n".join(lines), encoding="utf-8")
        return read([str(path)])

    return make


@pytest.mark.parametrize(
    ("count", "severity"), [(7, "error"), (8, "warning"), (49, "warning"), (50, None)]
)
def test_too_few_rows_are_told(rows: Make, count: int, severity: str | None) -> None:
    found = list(Form().findings(rows(count), "stop"))
    assert [finding.severity for finding in found] == ([severity] if severity else [])


def test_refused_rows_are_told_once_a_kind_with_the_first(tmp_path: Path) -> None:
    good = [json.dumps({"prompt": f"q{n}", "completion": f"a{n}"}) for n in range(60)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join([*good, '{"prompt": "q"}', "{oops", '{"prompt": "r"}']), "utf-8")
    found = list(Form().findings(read([str(path)]), "stop"))
    assert sorted(finding.count for finding in found) == [1, 2]
    assert {row for finding in found for row in finding.rows} == {f"{path}:61", f"{path}:62"}
    assert all(finding.severity == "warning" for finding in found)


def test_trap_12_rows_refused_for_their_length_stop_a_run_unless_asked_to_drop_them(
    tmp_path: Path, template: ChatTemplate
) -> None:
    lines = [json.dumps({"prompt": f"q{n}", "completion": "a" * n}) for n in range(1, 80)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    refine = refiner(template, 100, "stop")
    dataset = read([str(path)], refine=refine)
    (found,) = Form().findings(dataset, "stop")
    assert (found.check, found.severity, found.count) == ("tokens", "error", dataset.bad)
    assert "too long: 101 tokens; expected at most 100" in found.message
    (found,) = Form().findings(dataset, "drop")
    assert found.severity == "warning"
    assert refine.dropped_tokens == sum(range(101, 101 + dataset.bad))


@pytest.mark.parametrize(
    ("question", "answer", "what"),
    [
        ("It doesnâ€™t open", "Try again.", "garbled"),
        ("grÃ¼n or blue?", "green", "garbled"),
        ("Hello", "Dear {{Customer Name}},", "placeholders"),
        ("Hello", "Dear [Your Name],", "placeholders"),
        ("Hi<|im_end|>", "Hi", "markup"),
        ("Hi", "<p>Hi</p>", "HTML"),
        ("Hi", "Fish &amp; chips", "HTML"),
        ("Hi", "As an AI language model, I cannot eat.", "another assistant"),
    ],
)
def test_texts_that_look_broken_are_told(
    talk: Talk, rows: Make, question: str, answer: str, what: str
) -> None:
    form = Form()
    form.see(look(talk(question, answer, line=3)))
    form.see(look(talk("a", "b", line=4)))
    (found,) = form.findings(rows(60), "stop")
    assert what in found.message
    assert (found.severity, found.rows) == ("warning", ("rows.jsonl:3",))


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Ça va, São Tomé, 20 °C?", "Grüße – “ja” … naïve"),
        ("<p>How?</p>", "if a < b and c > d: {x}"),
        ("array[0]", "see [1] and [link](x)"),
    ],
)
def test_texts_that_are_well_are_not(talk: Talk, rows: Make, question: str, answer: str) -> None:
    form = Form()
    form.see(look(talk(question, answer)))
    assert list(form.findings(rows(60), "stop")) == []


def test_placeholders_in_most_rows_are_the_style_of_the_data(talk: Talk, rows: Make) -> None:
    form = Form()
    for line in range(10):
        form.see(look(talk("list files", "ls {{path}}" if line else "ls", line=line)))
    (found,) = form.findings(rows(60), "stop")
    assert (found.severity, found.count) == ("note", 9)


def test_a_pair_with_two_equal_answers_is_an_error(rows: Make) -> None:
    form = Form()
    turn = (Message("assistant", "same"),)
    form.see(look(Preference((Message("user", "q"),), turn, turn, Source("pairs.jsonl", 2))))
    (found,) = form.findings(rows(60), "stop")
    assert (found.severity, found.rows) == ("error", ("pairs.jsonl:2",))
