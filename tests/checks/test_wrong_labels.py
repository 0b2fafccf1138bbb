from __future__ import annotations

import json

import numpy as np

from tunesmith.checks import wrong_labels as checks
from tunesmith.checks.wrong_labels import contradicted, json_fields, tempered, wrong_labels
from tunesmith.data.likeness import Vectors


def blobs(kinds: int, each: int, seed: int = 0) -> tuple[Vectors, list[str]]:
    rng = np.random.default_rng(seed)
    middles = rng.normal(size=(kinds, 32))
    vectors = np.repeat(middles, each, axis=0) + rng.normal(size=(kinds * each, 32)) * 0.5
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32), [f"label {i // each}" for i in range(kinds * each)]


def names(count: int) -> list[str]:
    return [f"rows.jsonl:{line}" for line in range(1, count + 1)]


def test_flipped_labels_are_named_with_the_label_that_the_others_give() -> None:
    vectors, labels = blobs(6, 30)
    flipped = [3, 50, 75, 110, 140, 170]
    truth = list(labels)
    for place in flipped:
        labels[place] = f"label {(place // 30 + 1) % 6}"
    found = wrong_labels(vectors, labels, names(180), seed=0)
    assert [suspect.place for suspect in found] == flipped
    for suspect in found:
        assert suspect.row == f"rows.jsonl:{suspect.place + 1}"
        assert suspect.why.startswith(repr(labels[suspect.place]))
        assert repr(truth[suspect.place]) in suspect.why
    assert found == wrong_labels(vectors, labels, names(180), seed=0)


def test_clean_labels_and_labels_of_pure_chance_name_hardly_a_row() -> None:
    vectors, labels = blobs(6, 30)
    assert wrong_labels(vectors, labels, names(180), seed=0) == []
    rng = np.random.default_rng(1)
    random = [f"label {n}" for n in rng.integers(0, 6, 180)]
    assert len(wrong_labels(vectors, random, names(180), seed=0)) < 36


def test_too_few_rows_one_label_or_rare_labels_are_not_judged() -> None:
    vectors, labels = blobs(3, 13)
    assert wrong_labels(vectors, labels, names(39), seed=0) == []
    assert wrong_labels(vectors, ["one"] * 39, names(39), seed=0) == []
    vectors, labels = blobs(3, 20)
    labels[0] = "rare"
    assert wrong_labels(vectors, labels, names(60), seed=0) == []


def test_the_temperature_makes_the_labels_likelier_and_never_sharper() -> None:
    likely = np.array([[0.999, 0.001], [0.999, 0.001], [0.001, 0.999], [0.999, 0.001]])
    given = np.array([0, 0, 1, 1])
    found = tempered(likely, given)
    assert np.allclose(found.sum(axis=1), 1)
    assert 0.7 < found[0, 0] < 0.8
    assert np.allclose(tempered(likely[:3], given[:3]), likely[:3], atol=1e-2)


def test_a_label_is_contradicted_below_chance_where_another_is_usual() -> None:
    likely = np.array([[0.9, 0.1], [0.9, 0.1], [0.2, 0.8], [0.95, 0.05], [0.2, 0.8], [0.45, 0.55]])
    best, named = contradicted(likely, np.array([0, 0, 1, 1, 0, 0]))
    assert best.tolist() == [0, 0, 1, 0, 1, 1]
    assert named.tolist() == [False, False, False, True, True, False]


def test_fields_of_json_with_few_values_are_columns() -> None:
    answers = [json.dumps({"intent": f"i{n % 3}", "id": n, "on": n % 2 == 0}) for n in range(30)]
    answers[4] = json.dumps({"intent": "i1", "id": 4})
    columns = json_fields(answers)
    assert set(columns) == {"intent", "on"}
    assert columns["intent"][:3] == ['"i0"', '"i1"', '"i2"']
    assert columns["on"][3:6] == ["false", "null", "false"]
    assert checks.FEWEST > 30
