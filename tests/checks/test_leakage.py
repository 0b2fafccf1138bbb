from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tunesmith.checks.leakage import leakage
from tunesmith.data.dataset import read
from tunesmith.data.split import split


def written(path: Path, prompts: Iterable[str]) -> str:
    lines = [json.dumps({"prompt": prompt, "completion": f"About {prompt}"}) for prompt in prompts]
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


SUBJECTS = [
    "harbour",
    "kitchen",
    "umbrella",
    "violin",
    "glacier",
    "lantern",
    "saddle",
    "compass",
    "orchard",
    "tunnel",
]
QUESTIONS = [f"Explain how the {a} differs from any {b} I own" for a in SUBJECTS for b in SUBJECTS]


def test_a_split_of_our_own_leaks_nothing(tmp_path: Path) -> None:
    dataset = read([written(tmp_path / "rows.jsonl", QUESTIONS * 2)])
    assert list(leakage(split(dataset, validation="auto", test="auto", seed=0))) == []


def test_training_rows_with_a_prompt_of_the_test_file_are_told_by_name(tmp_path: Path) -> None:
    train = written(tmp_path / "train.jsonl", QUESTIONS[:40])
    test = written(tmp_path / "test.jsonl", [QUESTIONS[3], QUESTIONS[7], *QUESTIONS[60:]])
    parts = split(read([train]), validation=0, test=read([test]), seed=0)
    exact = next(iter(leakage(parts)))
    assert (exact.check, exact.severity, exact.count) == ("leakage", "warning", 2)
    assert exact.rows == (f"{train}:4", f"{train}:8")


def test_near_copies_of_test_rows_are_told_with_a_pair(tmp_path: Path) -> None:
    long = "the parcel was left behind the blue door of number nine and nobody rang the bell"
    train = written(tmp_path / "train.jsonl", [*QUESTIONS[:30], f"{long} today"])
    test = written(tmp_path / "test.jsonl", [f"{long} today!!", "What is a quince?"])
    parts = split(read([train]), validation=0, test=read([test]), seed=0)
    near = list(leakage(parts))[-1]
    assert "nearly repeat" in near.message
    assert f"{train}:31 does {test}:1" in near.message
    assert near.rows == (f"{train}:31",)
