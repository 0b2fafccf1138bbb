from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.chat import Message, ToolCall
from tunesmith.data.dataset import Dataset, read
from tunesmith.data.examples import (
    Conversation,
    Document,
    Example,
    Preference,
    Source,
    UnpairedPreference,
)
from tunesmith.data.fingerprint import digest, prompt_key
from tunesmith.data.split import Split, read_jsonl, split, write_jsonl
from tunesmith.errors import UsageError

_WORDS = [
    "lamp",
    "river",
    "judge",
    "violin",
    "cactus",
    "engine",
    "marble",
    "pigeon",
    "orchid",
    "ladder",
    "comet",
    "barrel",
]


def _text(number: int) -> str:
    draw = random.Random(number)
    return " ".join(draw.choice(_WORDS) + str(draw.randrange(99)) for _ in range(8))


def _data(path: Path, texts: Sequence[str], answers: Sequence[str] | None = None) -> Dataset:
    answers = answers or [text.upper() for text in texts]
    rows = [{"prompt": a, "completion": b} for a, b in zip(texts, answers, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read([str(path)])


def _contents(rows: object) -> set[bytes]:
    assert hasattr(rows, "__iter__")
    return {digest(row) for row in rows}


def _sizes(made: Split) -> tuple[int, int, int]:
    return len(made.train), len(made.validation), len(made.test)


@pytest.mark.parametrize(
    ("count", "sizes"),
    [
        (1, (1, 0, 0)),
        (2, (1, 1, 0)),
        (30, (15, 5, 10)),
        (99, (50, 17, 32)),
        (100, (50, 10, 40)),
        (200, (140, 20, 40)),
        (1000, (750, 100, 150)),
        (3000, (2400, 200, 400)),
    ],
)
def test_auto_keeps_40_test_rows_and_half_to_train_on(
    tmp_path: Path, count: int, sizes: tuple[int, int, int]
) -> None:
    data = _data(tmp_path / "rows.jsonl", [_text(n) for n in range(count)])
    made = split(data, validation="auto", test="auto", seed=0)
    assert _sizes(made) == sizes
    parts = [_contents(part) for part in (made.train, made.validation, made.test)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == count
    assert list(made.train) == list(made.train)


@pytest.mark.parametrize(
    ("validation", "test", "sizes"),
    [
        (0, 0, (200, 0, 0)),
        (0.1, 0.25, (130, 20, 50)),
        (7, 150, (43, 7, 150)),
        ("auto", 90, (100, 10, 90)),
        (0, "auto", (160, 0, 40)),
    ],
)
def test_sizes_are_what_was_asked_for(
    tmp_path: Path, validation: float, test: float, sizes: tuple[int, int, int]
) -> None:
    data = _data(tmp_path / "rows.jsonl", [_text(n) for n in range(200)])
    assert _sizes(split(data, validation=validation, test=test, seed=3)) == sizes


def test_sizes_that_leave_nothing_are_wrong_usage(tmp_path: Path) -> None:
    data = _data(tmp_path / "rows.jsonl", [_text(n) for n in range(20)])
    with pytest.raises(UsageError, match="20 test and 0 validation rows of 20"):
        split(data, validation=0, test=20, seed=0)
    with pytest.raises(UsageError, match=r"data.validation is -1"):
        split(data, validation=-1, test=0, seed=0)


def test_trap_23_split_leakage(tmp_path: Path) -> None:
    texts: list[str] = []
    for number in range(120):
        text = "please tell me about " + _text(number)
        texts += [text, text.title() + "?", text + " now", text][: 1 + number % 4]
    answers = [f"answer {n % 2} to {text.casefold()[:60]}" for n, text in enumerate(texts)]
    data = _data(tmp_path / "rows.jsonl", texts, answers)
    assert len(set(data.groups.tolist())) < 0.6 * len(data)
    group = dict(zip(map(digest, data), data.groups.tolist(), strict=True))
    for seed in range(3):
        made = split(data, validation="auto", test="auto", seed=seed)
        parts = [{group[d] for d in _contents(p)} for p in (made.train, made.validation, made.test)]
        assert sum(map(len, parts)) == len(set.union(*parts))
        assert len(made.test) >= 40
        prompts = [
            {prompt_key(row, normal=True) for row in part}
            for part in (made.train, made.validation, made.test)
        ]
        assert sum(map(len, prompts)) == len(set.union(*prompts))


def test_trap_33_order_independent_split(tmp_path: Path) -> None:
    texts = [_text(n // 2) + "!" * (n % 2) for n in range(180)]
    one = _data(tmp_path / "one.jsonl", texts)
    shuffled = random.Random(5).sample(texts, len(texts))
    _data(tmp_path / "two.jsonl", shuffled[:70])
    _data(tmp_path / "three.jsonl", shuffled[70:])
    two = read([str(tmp_path / "two.jsonl"), str(tmp_path / "three.jsonl")])
    for seed in (0, 1):
        first = split(one, validation="auto", test="auto", seed=seed)
        second = split(two, validation="auto", test="auto", seed=seed)
        for part in ("train", "validation", "test"):
            assert _contents(getattr(first, part)) == _contents(getattr(second, part))
    other = split(one, validation="auto", test="auto", seed=2)
    assert _contents(other.test) != _contents(first.test)


def test_one_giant_group_stays_in_training(tmp_path: Path) -> None:
    texts = ["Good day, " + _text(0) + "." * n for n in range(60)] + [
        _text(n) for n in range(1, 141)
    ]
    made = split(_data(tmp_path / "rows.jsonl", texts), validation=10, test=30, seed=0)
    assert _sizes(made) == (160, 10, 30)


def test_rows_whose_prompt_stands_in_the_own_test_file_leave_training(tmp_path: Path) -> None:
    data = _data(tmp_path / "rows.jsonl", [_text(n) for n in range(100)])
    held = [_text(3), _text(8) + "  ", _text(5) + " or so", _text(500)]
    test = _data(tmp_path / "test.jsonl", held, ["x"] * 4)
    made = split(data, validation=20, test=test, seed=0)
    assert made.test is test
    assert (made.leaked, *_sizes(made)) == (2, 78, 20, 4)
    gone = list(made.leaked_rows())
    assert [row.source.line for row in gone] == [4, 9]
    assert "test.jsonl:1, which is held out" in gone[0].reason
    assert json.loads(gone[0].row)["prompt"] == _text(3)
    held_keys = {prompt_key(row) for row in test}
    for part in (made.train, made.validation):
        assert not held_keys & {prompt_key(row) for row in part}


def test_near_copies_in_the_own_test_file_are_named_and_stay(tmp_path: Path) -> None:
    answers = ["the same answer"] * 30
    data = _data(tmp_path / "rows.jsonl", [_text(n) for n in range(30)], answers)
    test = _data(tmp_path / "test.jsonl", [_text(4).upper(), _text(90)], answers[:2])
    made = split(data, validation=0, test=test, seed=0)
    assert (made.leaked, len(made.train), made.near_leaked) == (0, 30, 1)
    ((ours, theirs),) = made.near_leaks
    assert (ours.line, theirs.line) == (5, 1)
    assert list(made.leaked_rows()) == []


_TEXT = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=20)
_CALLS = st.lists(st.builds(ToolCall, _TEXT, _TEXT, st.just('{"x": "é"}')), max_size=2).map(tuple)
_MESSAGE = st.builds(
    Message,
    st.sampled_from(("system", "user", "assistant", "tool")),
    st.none() | _TEXT,
    st.none() | _TEXT,
    _CALLS,
    st.none() | _TEXT,
    st.none() | st.floats(0, 1),
)
_TURNS = st.lists(_MESSAGE, min_size=1, max_size=4).map(tuple)
_SOURCE = st.builds(Source, _TEXT, st.integers(1, 10**9))
_TOOLS = st.lists(
    st.fixed_dictionaries(
        {"type": st.just("function"), "function": st.fixed_dictionaries({"name": _TEXT})}
    ),
    max_size=2,
).map(tuple)
_EXAMPLE = (
    st.builds(Conversation, _TURNS, _SOURCE, _TOOLS)
    | st.builds(Preference, _TURNS, _TURNS, _TURNS, _SOURCE, _TOOLS)
    | st.builds(UnpairedPreference, _TURNS, _TURNS, st.booleans(), _SOURCE, _TOOLS)
    | st.builds(Document, _TEXT, _SOURCE, st.booleans())
)


@given(rows=st.lists(_EXAMPLE, max_size=4))
def test_what_is_written_is_read_again(
    rows: list[Example], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "roundtrip.jsonl"
    assert write_jsonl(rows, path) == len(rows)
    assert list(read_jsonl(path)) == rows


def test_written_rows_are_openai_chat_with_their_source(tmp_path: Path) -> None:
    data = _data(tmp_path / "rows.jsonl", ["a"], ["b"])
    write_jsonl(data, tmp_path / "train.jsonl")
    assert json.loads((tmp_path / "train.jsonl").read_text()) == {
        "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        "source": {"file": str(tmp_path / "rows.jsonl"), "line": 1},
    }
    again = read([str(tmp_path / "train.jsonl")])
    assert again.fingerprint == data.fingerprint


def _book(path: Path, name: str, count: int) -> str:
    """A text of as many passages, no two alike."""
    file = path / f"{name}.txt"
    paragraphs = [
        " ".join(_text(ord(name) * 10**4 + 20 * n + k) for k in range(20)) for n in range(count)
    ]
    file.write_text("".join(f"{name} {n} {text}\n\n" for n, text in enumerate(paragraphs)))
    return str(file)


def _places(dataset: Dataset, part: object) -> list[int]:
    """Where the examples of a part stand in the dataset."""
    order = {row.source: index for index, row in enumerate(dataset)}
    assert hasattr(part, "__iter__")
    return [order[row.source] for row in part]


@pytest.mark.parametrize("seed", [0, 1])
def test_a_running_text_is_held_out_from_its_end_in_one_block(tmp_path: Path, seed: int) -> None:
    dataset = read([_book(tmp_path, "a", 20)], format="text")
    assert len(dataset) == 20
    made = split(dataset, validation=3, test=4, seed=seed)
    assert _places(dataset, made.train) == list(range(13))
    assert _places(dataset, made.validation) == [13, 14, 15]
    assert _places(dataset, made.test) == [16, 17, 18, 19]


def test_each_of_several_texts_gives_its_end(tmp_path: Path) -> None:
    files = [_book(tmp_path, "a", 10), _book(tmp_path, "b", 20)]
    dataset = read(files, format="text")
    made = split(dataset, validation=0, test=0.2, seed=0)
    assert _places(dataset, made.test) == [8, 9, 26, 27, 28, 29]


def test_texts_and_rows_give_like_shares(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": _text(5000 + n)}) + "\n" for n in range(200)))
    dataset = read([_book(tmp_path, "a", 50), str(rows)], format="text")
    made = split(dataset, validation=0, test=50, seed=0)
    places = _places(dataset, made.test)
    book = [place for place in places if place < 50]
    assert book == list(range(50 - len(book), 50))
    assert 6 <= len(book) <= 14


def test_a_passage_that_stands_in_the_own_test_file_leaves_training(tmp_path: Path) -> None:
    dataset = read([_book(tmp_path, "a", 10)], format="text")
    rows = list(dataset)
    own = tmp_path / "own.jsonl"
    write_jsonl([rows[3]], own)
    made = split(dataset, validation=0, test=read([str(own)], format="text"), seed=0)
    assert (made.leaked, len(made.train)) == (1, 9)
    assert "its text stands in" in next(made.leaked_rows()).reason


def test_the_document_that_a_row_names_is_written_and_read_back(tmp_path: Path) -> None:
    turns = (Message("user", "q"), Message("assistant", "a"))
    rows = [Conversation(turns, Source("r", n), (), name) for n, name in enumerate(("", "d7"))]
    write_jsonl(rows, tmp_path / "rows.jsonl")
    assert list(read_jsonl(tmp_path / "rows.jsonl")) == rows
    assert digest(rows[0]) == digest(rows[1])
