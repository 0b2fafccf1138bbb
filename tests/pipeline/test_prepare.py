from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tunesmith import recipe as recipes
from tunesmith.data.examples import Document
from tunesmith.errors import DataError, UsageError
from tunesmith.models import fetch
from tunesmith.models.template import ChatTemplate
from tunesmith.pipeline import prepare
from tunesmith.pipeline.folder import RunFolder
from tunesmith.recipe import Recipe
from tunesmith.testing import CHATML, byte_template

Rows = Callable[..., Path]


def recipe(path: Path, **values: Any) -> Recipe:
    keyed = {key.replace("__", "."): value for key, value in values.items()}
    return recipes.with_values(Recipe(), {"data.files": [str(path)], **keyed})


def gathered(asked: Recipe, template: ChatTemplate | None = None) -> prepare.Prepared:
    return prepare.gather(asked.data, template, seed=asked.train.seed)


def test_rows_are_used_rejected_or_duplicates_and_each_unused_one_is_named(
    tmp_path: Path, numbers: list[dict[str, str]], write_rows: Rows
) -> None:
    bad = [{"prompt": "no answer"}, {"prompt": 1, "completion": ["x"]}]
    rows = write_rows(tmp_path, [*numbers[:60], numbers[3], numbers[4], *bad])
    own = write_rows(tmp_path, [numbers[5], {"prompt": "new", "completion": "one"}], "test.jsonl")
    asked = recipe(rows, data__test=str(own), data__validation=10)
    prepared = gathered(asked, byte_template())
    counts = prepared.counts()
    assert counts == {
        "rows": 66,
        "used": 61,
        "rejected": 3,
        "duplicates": 2,
        "train": 49,
        "validation": 10,
        "test": 2,
    }
    folder = RunFolder(tmp_path / "run")
    prepare.write_data(prepared, folder)
    unused = folder.read_lines("data/rejected.jsonl")
    assert [set(row) for row in unused] == [{"file", "line", "reason", "row"}] * 5
    assert sorted(row["line"] for row in unused) == [6, 61, 62, 63, 64]
    for name in ("train", "validation", "test"):
        lines = folder.read_lines(f"data/{name}.jsonl")
        assert len(lines) == counts[name]
        assert all(set(line["source"]) == {"file", "line"} for line in lines)


def test_too_many_bad_rows_are_refused_unless_they_are_to_be_skipped(
    tmp_path: Path, numbers: list[dict[str, str]], write_rows: Rows
) -> None:
    rows = write_rows(tmp_path, [*numbers[:94], *({"prompt": f"q{n}"} for n in range(6))])

    def judged(**values: Any) -> None:
        asked = recipe(rows, **values)
        prepared = gathered(asked)
        report = prepare.examine(prepared, asked.data, None)
        prepare.refuse(prepared, asked.data, report)

    with pytest.raises(DataError, match=r"6 of 100 rows are bad \(6%\).*on_error=skip"):
        judged()
    judged(data__max_bad=0.06)
    judged(data__on_error="skip")
    with pytest.raises(UsageError, match="no data was named"):
        prepare.gather(Recipe().data, None, seed=0)


def test_every_auto_becomes_a_number_and_the_settled_recipe_splits_alike(
    wanted: Recipe, model: Path
) -> None:
    spec, template = fetch.resolve(str(model)), ChatTemplate.load(model)
    prepared = gathered(wanted, template)
    ledger = prepare.weigh(prepared, template)
    settled, reasons = prepare.resolve_auto(wanted, prepared.split, ledger, spec, template)
    left = [
        f"{section}.{key}"
        for section, values in settled.model_dump().items()
        for key, value in (values or {}).items()
        if value == "auto"
    ]
    # Which layout each file has is told and no number; the trainer says what dtype it took, and
    # how long it took, which decides about the curve.
    assert left == ["model.dtype", "data.format", "evaluate.curve"]
    assert (settled.data.validation, settled.data.test) == (20, 40)
    assert settled.model.revision == spec.revision
    assert settled.train.epochs == 1
    assert any(reason.startswith("method.rank = 16 (") for reason in reasons)
    again = gathered(settled, template)
    for part in ("train", "validation", "test"):
        sources = [[row.source for row in getattr(p.split, part)] for p in (prepared, again)]
        assert sources[0] == sources[1]


def test_the_ledger_counts_tokens_by_hand(tmp_path: Path, write_rows: Rows) -> None:
    template = byte_template()
    pairs = [{"prompt": "ab", "completion": "c" * length} for length in range(1, 13)]
    asked = recipe(write_rows(tmp_path, pairs), data__validation=0, data__test=0)
    prepared = gathered(asked, template)
    # <|im_start|>user\nab<|im_end|>\n<|im_start|>assistant\n, then the answer, then its end.
    before = 1 + len("user\nab") + 1 + 1 + 1 + len("assistant\n")
    answers = sum(range(1, 13)) + 12
    ledger = prepare.weigh(prepared, template)
    assert ledger.trained == answers
    assert ledger.masked >= 12 * before
    assert ledger.longest_answer == 13


def test_trap_22_a_run_is_known_by_recipe_rows_weights_and_template_and_not_by_its_files_name(
    tmp_path: Path, numbers: list[dict[str, str]], write_rows: Rows, model: Path
) -> None:
    spec = fetch.resolve(str(model))
    template = ChatTemplate.load(model)

    def key(rows: list[dict[str, str]], name: str = "rows.jsonl", **values: Any) -> str:
        asked = recipe(write_rows(tmp_path, rows, name), **values)
        return prepare.run_key(asked, gathered(asked), spec, template)

    first = key(numbers)
    asked = recipe(write_rows(tmp_path, numbers))
    other = replace(spec, weights_hash="0" * 64)
    assert key(numbers, "moved.jsonl") == first
    assert key(numbers[:-1]) != first
    assert key(numbers, train__seed=1) != first
    assert prepare.run_key(asked, gathered(asked), other, template) != first
    assert prepare.run_key(asked, gathered(asked), spec, template) == first
    # The same weights spoken to in another way, or read as other tokens, are another run.
    spoken_to = byte_template(chat_template="{{ 'Be kind. ' }}" + CHATML)
    assert prepare.run_key(asked, gathered(asked), spec, spoken_to) != first


def test_preferences_are_refused_where_demonstrations_are_wanted(
    tmp_path: Path, write_rows: Rows
) -> None:
    say = [{"role": "assistant", "content": "yes"}]
    row = {
        "input": {"messages": [{"role": "user", "content": "q"}]},
        "preferred_output": say,
        "non_preferred_output": [{"role": "assistant", "content": "no"}],
    }
    path = write_rows(tmp_path, [row])
    with pytest.raises(DataError, match=r"rows\.jsonl:1 is a preference or a rating"):
        prepare.demonstrations(
            prepare.gather(
                recipe(path, data__validation=0, data__test=0).data, None, seed=0
            ).dataset
        )


def test_limit_and_length_settings_have_an_effect(
    tmp_path: Path, numbers: list[dict[str, str]], write_rows: Rows
) -> None:
    rows = write_rows(tmp_path, [*numbers, numbers[0]])
    template = byte_template()
    assert gathered(recipe(rows, data__limit=50)).counts()["rows"] == 50
    assert gathered(recipe(rows, data__duplicates="keep")).counts()["duplicates"] == 0
    dropped = gathered(recipe(rows, data__max_tokens=29, data__too_long="drop"), template)
    assert 0 < dropped.counts()["rejected"] < 120
    reasons = {json.dumps(item.reason) for item in dropped.rejected()}
    assert any("too long" in reason for reason in reasons)


def book(folder: Path, passages: int = 40) -> Path:
    """Running text of as many passages."""
    path = folder / "book.txt"
    words = " ".join(f"word{n % 89}" for n in range(230))
    path.write_text("\n\n".join(f"Chapter {n * 7919}. {words} {n**5}" for n in range(passages)))
    return path


def test_text_is_batched_by_its_tokens_split_where_it_is_long_and_passed_over_twice(
    tmp_path: Path, model: Path
) -> None:
    asked = recipe(book(tmp_path), model__name=str(model), method__type="cpt")
    spec, template = fetch.resolve(str(model)), ChatTemplate.load(model)
    prepared = prepare.gather(asked.reading, template, seed=0)
    assert prepared.counts() == {
        **{"rows": 40, "used": 40, "rejected": 0, "duplicates": 0},
        **{"train": 20, "validation": 7, "test": 13},
    }
    ledger = prepare.weigh(prepared, template)
    # A token is a byte here, and the first of each passage is not trained.
    sizes = [len(row.text.encode()) for row in prepared.split.train if isinstance(row, Document)]
    assert (ledger.trained, ledger.masked) == (sum(sizes) - 20, 20)
    settled, reasons = prepare.resolve_auto(asked, prepared.split, ledger, spec, template)
    assert (settled.data.format, settled.data.too_long) == ("text", "split")
    assert (settled.train.epochs, settled.train.batch_rows) == (2, 1)
    assert not any("reference" in reason for reason in reasons)
    short = prepare.gather(asked.reading.model_copy(update={"max_tokens": 900}), template, seed=0)
    counts = short.counts()
    assert (counts["used"], counts["rejected"]) == (40, 0)
    assert counts["train"] + counts["validation"] + counts["test"] == len(short.dataset) == 80


def test_rows_that_a_method_does_not_learn_from_are_refused_before_they_are_read() -> None:
    with pytest.raises(UsageError, match=r"data\.format=text with method\.type=sft.*type=cpt"):
        prepare.learnable(recipes.read(None, ["data.format=text"]))
    with pytest.raises(UsageError, match="tunesmith train"):
        prepare.comparable(recipes.read(None, ["method.type=cpt"]))
    for settings in ([], ["method.type=cpt"]):
        prepare.learnable(recipes.read(None, settings))
    prepare.comparable(Recipe())


def test_a_text_is_no_demonstration(tmp_path: Path) -> None:
    data = recipe(book(tmp_path), data__format="text", data__test=0).reading
    with pytest.raises(DataError, match=r"book\.txt:1 is a text; .*method\.type=cpt"):
        prepare.demonstrations(prepare.gather(data, None, seed=0).dataset)
