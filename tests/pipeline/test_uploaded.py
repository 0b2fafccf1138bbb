from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunesmith import recipe as recipes
from tunesmith.errors import DataError, FileRefused
from tunesmith.pipeline import prepare, uploaded
from tunesmith.pipeline.uploaded import Upload
from tunesmith.recipe import Recipe
from tunesmith.testing import byte_template

ASKED = {"role": "user", "content": "say one"}
SYSTEM = {"role": "system", "content": "You count."}


def chat(*messages: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"messages": list(messages), **more}


def good(number: int) -> dict[str, Any]:
    answer = {"role": "assistant", "content": f"it is {number}"}
    return chat({"role": "user", "content": f"say {number} in words"}, answer)


GOOD = [good(number) for number in range(10)]
Refuse = Callable[..., FileRefused]


def taken(files: list[str], *, context: int = 2048) -> list[tuple[str, str]]:
    """What is told of files that are taken; their paths have other names than the uploads."""
    kinds: tuple[Any, ...] = ("training", "validation")
    uploads = [
        Upload(path, f"file-{kind[0]}", f"{kind}.jsonl", kind)
        for path, kind in zip(files, kinds, strict=False)
    ]
    for upload in uploads:
        uploaded.check_lines(upload)
    held = files[1] if len(files) > 1 else 0
    values = {"data.files": files[:1], "data.validation": held, "data.test": 0}
    values |= {"data.duplicates": "keep", "data.too_long": "drop"}
    data = recipes.with_values(Recipe(), values).data
    told: list[tuple[str, str]] = []
    try:
        prepared = prepare.gather(data, byte_template(context=context), seed=0)
    except DataError as error:
        raise uploaded.of_reader(error, uploads) from None
    try:
        uploaded.accept(prepared, uploads, lambda level, text: told.append((level, text)))
    except FileRefused as error:
        error.add_note(json.dumps([text for level, text in told if level == "error"]))
        raise
    return told


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    def make(rows: list[Any], name: str = "file-1") -> str:
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path = tmp_path / name
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        return str(path)

    return make


Write = Callable[..., str]


@pytest.fixture
def refused(write: Write) -> Refuse:
    """The refusal of a training file of rows."""

    def make(rows: list[Any], **settings: Any) -> FileRefused:
        with pytest.raises(FileRefused) as caught:
            taken([write(rows)], **settings)
        assert "/" not in str(caught.value).replace("prompt/completion", "")
        return caught.value

    return make


def test_chat_and_prompt_completion_files_are_taken(write: Write) -> None:
    answer = {"role": "assistant", "content": "one"}
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    rows = [
        chat(SYSTEM, ASKED, {**answer, "weight": 0}, ASKED, {**answer, "weight": 1}),
        chat({**ASKED, "name": "ada"}, answer),
        chat(
            *(ASKED, {"role": "assistant", "tool_calls": [call]}),
            *({"role": "tool", "tool_call_id": "c", "content": "1"}, answer),
            tools=[tool],
            parallel_tool_calls=False,
        ),
    ]
    told = taken([write(GOOD + rows)])
    assert [text for level, text in told if level == "info"] == [
        "training.jsonl: read as OpenAI chat; the column `parallel_tool_calls` is not used"
    ]
    pairs = [{"prompt": f"say {n}", "completion": f"it is {n}"} for n in range(10)]
    assert ("info", "training.jsonl: read as prompt/completion") in taken([write(pairs)])


def test_too_few_examples_are_refused_and_blank_lines_are_none(refused: Refuse) -> None:
    error = refused(["", *GOOD[:3], " \t", ""])
    assert str(error) == "Training file has 3 example(s), but must have at least 10 examples"
    assert (error.code, error.param) == ("invalid_n_examples", "training_file")
    assert str(refused([])).startswith("Training file has 0 example(s)")


BAD: list[tuple[Any, str]] = [
    (chat(ASKED, {"content": "one"}), "Example 12, message 2: the role of turn 2 is null"),
    (chat(ASKED, {"role": "robot", "content": "one"}), "message 2: the role of turn 2 is `robot`"),
    (chat(ASKED), "Example 12: there is no assistant turn"),
    (
        chat(ASKED, {"role": "assistant", "content": "one", "weight": 2}),
        "Example 12, message 2: the weight of turn 2 is 2",
    ),
    ({"prompt": "one", "completion": "two"}, "Example 12: the row has no `messages`"),
    ('{"messages": [', "Example 12: "),
    ("[1, 2]", "Example 12: the row is a list"),
    ("[" * 100_000, "Example 12: "),
]


@pytest.mark.parametrize(("row", "reason"), BAD)
def test_a_bad_example_refuses_the_file_with_its_number_and_that_of_the_message(
    refused: Refuse, row: Any, reason: str
) -> None:
    # Examples are counted, and not lines.
    error = refused([*GOOD, "", GOOD[0], row])
    start = "The job failed due to an invalid training file. Invalid file format. Example 12"
    assert str(error).startswith(start)
    assert reason in str(error)
    assert (error.code, error.param) == ("invalid_training_file", "training_file")
    assert "--" not in str(error)


def test_twenty_bad_examples_are_told_and_how_many_more(refused: Refuse) -> None:
    error = refused([*GOOD, *[chat(ASKED)] * 23])
    told = json.loads(error.__notes__[0])
    assert len(told) == 21
    assert told[19].startswith("training.jsonl: Example 30: there is no assistant turn")
    assert told[20] == "training.jsonl: 3 more examples are invalid"


def test_an_example_beyond_the_context_is_named_and_its_tokens_are_counted(
    refused: Refuse,
) -> None:
    long = chat(ASKED, {"role": "assistant", "content": "one " * 200})
    error = refused([*GOOD, long], context=512)
    assert "Example 11: too long: " in str(error)
    tokens = int(str(error).partition("too long: ")[2].partition(" tokens")[0])
    assert 800 < tokens < 900
    assert "expected at most 512" in str(error)


def test_pairs_of_answers_are_another_method(refused: Refuse) -> None:
    pair = {
        "input": {"messages": [ASKED]},
        "preferred_output": [{"role": "assistant", "content": "one"}],
        "non_preferred_output": [{"role": "assistant", "content": "two"}],
    }
    assert str(refused([pair] * 10)) == (
        "The job failed due to an invalid training file. Input file file-t is in the "
        "fine-tune-preference format, but the specified fine-tuning job is not using 'dpo' as the "
        "training method (provided method=supervised)."
    )


UNEXPECTED: list[list[Any]] = [
    [{"instruction": "say one", "output": "one"}] * 10,
    [{"question": "say one", "answer": "one"}] * 10,
    [{"input": "say one", "output": "one"}] * 10,
    [{"a": 1, "b": 2}] * 10,
    [json.dumps([row]) for row in GOOD],
    ["prompt,completion"] + ["say one,one"] * 10,
    json.dumps(GOOD[0], indent=1).splitlines(),
]


@pytest.mark.parametrize("rows", UNEXPECTED)
def test_other_formats_are_refused(refused: Refuse, rows: list[Any]) -> None:
    error = refused(rows)
    assert "expected either prompt/completion pairs or chat messages" in str(error)
    assert error.code == "invalid_training_file"


def test_packed_and_foreign_bytes_are_refused(tmp_path: Path) -> None:
    plain = "".join(json.dumps(row) + "\n" for row in GOOD)
    path = tmp_path / "file-1"
    for content in (gzip.compress(plain.encode()), plain.encode("utf-16"), b"PAR1" + b"x\n" * 20):
        path.write_bytes(content)
        with pytest.raises(FileRefused, match="invalid training file"):
            taken([str(path)])
    path.write_bytes(plain.encode() + b'{"messages": "\xff"}\n')
    with pytest.raises(FileRefused, match="Example 11: the row is not valid UTF-8"):
        taken([str(path)])


def test_a_file_that_was_deleted_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileRefused, match=r"training\.jsonl is not there any more"):
        taken([str(tmp_path / "gone")])


def test_a_line_is_refused_before_it_is_held_whole(
    refused: Refuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploaded, "LONGEST", 1000)
    assert "Example 11 has more than 1,000 bytes" in str(refused([*GOOD, "x" * 5000]))


def test_a_bad_validation_file_is_refused_as_such(write: Write) -> None:
    with pytest.raises(
        FileRefused, match=r"invalid validation file.*Example 2: there is"
    ) as caught:
        taken([write(GOOD), write([good(20), chat(ASKED)], "file-2")])
    assert (caught.value.code, caught.value.param) == (
        *("invalid_validation_file", "validation_file"),
    )
    with pytest.raises(FileRefused, match=r"Validation file has 0 example\(s\)"):
        taken([write(GOOD), write([], "file-2")])
    with pytest.raises(FileRefused, match="Every example of the training file") as caught:
        taken([write(GOOD), write(GOOD, "file-2")])
    assert caught.value.code == "invalid_validation_file"


def test_copies_are_told_by_their_numbers(write: Write) -> None:
    told = taken([write([*GOOD, GOOD[3], good(30), GOOD[0]])])
    assert (
        "warn",
        "training.jsonl: 2 example(s) repeat an earlier one word for word, and are kept: 11, 13",
    ) in told
