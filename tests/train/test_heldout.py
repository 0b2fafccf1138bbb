from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tunesmith.data.examples import Document, Source
from tunesmith.data.split import write_jsonl
from tunesmith.models.load import load
from tunesmith.train import checkpoint, heldout
from tunesmith.train.fit import fit
from tunesmith.train.spec import TrainSpec

Spec = Callable[..., TrainSpec]
TEXTS = ["It was the best of times, ", "it was the worst of t\u00efmes.", "x"]


def write(path: Path, texts: list[str]) -> str:
    """Documents that stand in one file, the last one at its end."""
    write_jsonl(
        [
            Document(text, Source("book.txt", line), line == len(texts))
            for line, text in enumerate(texts, 1)
        ],
        path,
    )
    return str(path)


@pytest.fixture
def spec(spec_of: Spec, tmp_path: Path) -> TrainSpec:
    """Eight steps on text that repeats itself."""
    made = [f"{n} green bottles hanging on the wall, " * 3 for n in range(26)]
    return spec_of(
        tmp_path / "run",
        method="cpt",
        train=write(tmp_path / "train.jsonl", made[:22]),
        validation=write(tmp_path / "validation.jsonl", made[22:24]),
        heldout=write(tmp_path / "test.jsonl", made[24:]),
        max_batch_tokens=1000,
    )


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / heldout.FILE).read_text())["rows"]


def test_the_cost_of_a_text_is_what_transformers_says(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    model = load(tiny(), dtype="float32")
    texts = Path(write(tmp_path / "texts.jsonl", TEXTS))
    heldout.measure(model, texts, tmp_path, "base")
    heldout.measure(model, texts, tmp_path, "tuned")
    reference = AutoModelForCausalLM.from_pretrained(tiny(), dtype=torch.float32)
    found = rows_of(tmp_path)
    # The last text has one token, which nothing predicts; its end has no bytes.
    assert [row["line"] for row in found] == [1, 2]
    for row, text in zip(found, TEXTS, strict=False):
        ids = torch.tensor([model.template.encode(text)])
        with torch.no_grad():
            loss = reference(ids, labels=ids).loss
        assert row["bytes"] == row["tokens"] == len(text.encode()) - 1
        assert row["base"] == pytest.approx(float(loss) * row["tokens"], rel=1e-5)
        assert row["tuned"] == row["base"]


def test_training_on_text_makes_like_text_likelier(spec: TrainSpec) -> None:
    events: list[dict[str, Any]] = []
    fit(spec, events.append)
    losses = [event["loss"] for event in events if event["type"] == "validation"]
    assert losses[-1] < losses[0]
    steps = [event for event in events if event["type"] == "step"]
    # All tokens but the first of each passage are trained, and the end of the last one.
    assert sum(step["tokens"] - step["trained_tokens"] for step in steps[:4]) == 22
    for row in rows_of(Path(spec.out)):
        assert row["tuned"] < row["base"]


def test_a_run_that_goes_on_keeps_what_the_base_said(spec: TrainSpec) -> None:
    class Stopped(Exception):
        pass

    def stop(event: dict[str, Any]) -> None:
        if event["type"] == "step" and event["step"] == 3:
            raise Stopped

    with pytest.raises(Stopped):
        fit(spec, stop)
    out = Path(spec.out)
    before = rows_of(out)
    assert checkpoint.steps(out / "checkpoints")[-1] == 2
    assert all("tuned" not in row for row in before)
    fit(spec, lambda _: None)
    assert [{**row, "tuned": None} for row in rows_of(out)] == [
        {**row, "tuned": None} for row in before
    ]


def test_full_fine_tuning_is_held_against_the_base_that_it_replaces(
    spec_of: Spec, spec: TrainSpec, tmp_path: Path
) -> None:
    whole = spec_of(
        tmp_path / "full",
        method="cpt",
        train=spec.train,
        validation=spec.validation,
        heldout=spec.heldout,
        full=True,
        embeddings=True,
        learning_rate=1e-3,
    )
    fit(whole, lambda _: None)
    fit(spec, lambda _: None)
    bases = [[row["base"] for row in rows_of(Path(made.out))] for made in (whole, spec)]
    assert bases[0] == pytest.approx(bases[1])
    assert all(row["tuned"] < row["base"] for row in rows_of(Path(whole.out)))
