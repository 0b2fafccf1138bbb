from __future__ import annotations

import numpy as np
import pytest

from tunesmith.data.likeness import Vectors, nearest, word_vectors


def unit(rows: int, width: int = 8, seed: int = 0) -> Vectors:
    vectors = np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_the_nearest_rows_are_those_of_all_cosines_sorted() -> None:
    asked, rows = unit(700, seed=1), unit(40)
    places, cosines = nearest(asked, rows, 3)
    every = asked @ rows.T
    assert places.tolist() == np.argsort(-every, axis=1, kind="stable")[:, :3].tolist()
    assert np.allclose(cosines, np.sort(every, axis=1)[:, :-4:-1])


def test_no_row_is_its_own_neighbour_and_few_rows_have_few_neighbours() -> None:
    rows = unit(600)
    places, _ = nearest(rows, rows, 5, own=True)
    assert not (places == np.arange(600)[:, None]).any()
    assert nearest(rows[:3], rows[:3], 5, own=True)[0].shape == (3, 2)
    assert nearest(rows[:1], rows[:1], 5, own=True)[0].shape == (1, 0)


def test_texts_of_like_words_have_like_vectors_of_length_one() -> None:
    texts = ["where is my card", "where is my new card", "refund a payment", "refund this payment"]
    vectors = word_vectors(texts)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(4), abs=1e-5)
    like = vectors @ vectors.T
    assert like[0, 1] > like[0, 2]
    assert like[2, 3] > like[1, 3]
    assert word_vectors(["", "  "]).shape[0] == 2
    assert word_vectors(["one"]).shape == (1, 1)
