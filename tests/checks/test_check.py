from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from tunesmith.checks.check import check
from tunesmith.checks.tokens import refiner
from tunesmith.data.dataset import read
from tunesmith.data.examples import Conversation
from tunesmith.data.split import split
from tunesmith.models.template import ChatTemplate

Shared = Callable[[str], Path]


def lines(path: Path, count: int) -> str:
    rows = [{"prompt": f"Question number {n} of many", "completion": f"{n}!"} for n in range(count)]
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return str(path)


def test_a_report_adds_up_and_progress_is_told(tmp_path: Path, template: ChatTemplate) -> None:
    dataset = read([lines(tmp_path / "rows.jsonl", 1200)])
    told: list[int] = []
    report = check(
        dataset,
        split(dataset, validation="auto", test="auto", seed=0),
        template,
        max_tokens=4096,
        progress=told.append,
    )
    assert told == [500, 1000, 1200]
    assert report.errors == ()
    assert report.ledger is not None
    assert report.tokens is not None
    assert report.answer_tokens is not None
    assert report.turns is not None
    assert report.turns.mean == 2
    answers = sum(len(f"{n}!") + 1 for n in range(1200))
    assert report.ledger.trained_tokens == answers
    total = sum(len(chain.ids) for row in dataset for chain in template.chains(row))  # type: ignore[arg-type]
    assert report.ledger.masked_tokens == total - answers
    assert report.tokens.mean == pytest.approx(total / 1200)
    assert report.answer_tokens.largest == len("1199!") + 1


def test_without_a_template_there_are_no_tokens(tmp_path: Path) -> None:
    report = check(read([lines(tmp_path / "rows.jsonl", 60)]), None, None, max_tokens=1)
    assert (report.ledger, report.tokens, report.answer_tokens) == (None, None, None)


def test_what_is_held_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    peaks: list[int] = []
    for count in (1000, 5000):
        dataset = read([lines(tmp_path / f"{count}.jsonl", count)])
        check(dataset, None, None, max_tokens=1)
        tracemalloc.start()
        check(dataset, None, None, max_tokens=1)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (peaks[1] - peaks[0]) / 4000 < 200


def test_trap_13_a_run_names_the_row_that_does_not_render(
    tmp_path: Path, template: ChatTemplate
) -> None:
    path = Path(lines(tmp_path / "rows.jsonl", 60))
    bad = json.dumps({"prompt": "poison", "completion": "never trained"})
    path.write_text(f"{path.read_text()}\n{bad}", encoding="utf-8")
    refined = read([str(path)], refine=refiner(template, 4096, "stop"))
    assert (refined.used, refined.bad) == (60, 1)
    told = check(refined, None, template, max_tokens=4096)
    assert [f.rows for f in told.findings if "poisoned" in f.message] == [(f"{path}:61",)]
    unrefined = check(read([str(path)]), None, template, max_tokens=4096)
    assert [f.rows for f in unrefined.errors] == [(f"{path}:61",)]


def test_trap_12_split_rows_are_counted_and_named(tmp_path: Path, template: ChatTemplate) -> None:
    turns = [
        {"role": role, "content": f"{role} {n} " + "x" * 40}
        for n in range(6)
        for role in ("user", "assistant")
    ]
    rows = [json.dumps({"messages": turns[: 2 * (1 + n % 6)]}) for n in range(6)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(rows), encoding="utf-8")
    dataset = read([str(path)], refine=refiner(template, 300, "split"))
    assert (dataset.used, dataset.bad) == (6, 0)
    report = check(dataset, None, template, max_tokens=300, too_long="split")
    assert report.tokens is not None
    assert report.tokens.largest <= 300
    (found,) = [f for f in report.findings if "split into" in f.message]
    assert found.severity == "warning"
    long = [
        f"{path}:{row.source.line}"
        for row in read([str(path)])
        if isinstance(row, Conversation) and len(template.chains(row)[0].ids) > 300
    ]
    assert list(found.rows) == long
    assert 0 < found.count == len(long) < 6


def test_shared_banking77_has_labels_and_no_errors(shared: Shared, template: ChatTemplate) -> None:
    dataset = read([str(shared("banking77/train.jsonl"))], limit=1500, seed=0)
    report = check(dataset, None, template, max_tokens=4096)
    assert report.errors == ()
    assert report.labels is not None
    assert len(report.labels) == 50


def test_shared_support_requests_are_labels_with_placeholders_and_copies(shared: Shared) -> None:
    path = shared("dirty_files/support_requests_duplicates.csv")
    dataset = read([str(path)], limit=3000, seed=0)
    report = check(dataset, None, None, max_tokens=1)
    assert report.labels is not None
    assert len(report.labels) == 11
    said = [f.message for f in report.findings]
    assert any("near duplicates" in message for message in said)
    assert any("placeholders" in message for message in said)


def test_shared_prompts_with_several_answers_are_told(shared: Shared) -> None:
    dataset = read([str(shared("dirty_files/prompt_completion.jsonl"))])
    report = check(dataset, None, None, max_tokens=1)
    (found,) = [f for f in report.findings if "different answers" in f.message]
    assert found.count > 100


def test_shared_two_rows_are_too_few(shared: Shared) -> None:
    dataset = read([str(shared("dirty_files/alpaca_two_rows.json"))])
    report = check(dataset, None, None, max_tokens=1)
    assert [f.check for f in report.errors] == ["form"]


def test_text_is_checked_for_what_text_can_have(tmp_path: Path, template: ChatTemplate) -> None:
    path = tmp_path / "book.txt"
    mail = "Write to anna@posteo.de. "
    paragraphs = [
        f"Chapter {n}, of {n * n}. " + f"Sentence {n * 7} is here. " * 60 for n in range(60)
    ]
    paragraphs[7] += mail
    path.write_text("\n\n".join(paragraphs))
    dataset = read([str(path)], format="text", refine=refiner(template, 400, "split"))
    report = check(dataset, None, template, max_tokens=400, too_long="split")
    assert report.errors == ()
    assert {finding.check for finding in report.findings} == {"tokens", "privacy"}
    assert (report.turns, report.answer_tokens, report.labels) == (None, None, None)
    assert report.tokens is not None
    assert report.tokens.largest <= 400
    # A token is a byte, every first one is not trained, and one ends the text.
    assert report.ledger is not None
    size = len(path.read_bytes())
    assert report.ledger.masked_tokens == len(dataset)
    assert report.ledger.trained_tokens == size - len(dataset) + 1


def test_a_model_without_a_chat_template_reads_text_as_any_other(
    tmp_path: Path, byte_tokenizer: Tokenizer
) -> None:
    plain = ChatTemplate(
        byte_tokenizer, None, specials={"eos_token": "<|im_end|>"}, stops=(257,), context=4096
    )
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": f"text {n * 7919}"}) + "\n" for n in range(60)))
    report = check(read([str(path)], format="text"), None, plain, max_tokens=4096)
    assert report.findings == ()
