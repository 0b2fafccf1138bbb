"""How alike texts are, from vectors of length 1: those of an encoder, or of their words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

Vectors = NDArray[np.float32]
"""(rows, width), each row of length 1."""
WIDTH = 128
_PIECE = 512


def nearest(
    asked: Vectors, rows: Vectors, count: int, *, own: bool = False
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """The most alike rows of each asked one: places (N, count), nearest first, and their cosines.

    Args:
        count: fewer where there are fewer rows.
        own: `asked` are the rows themselves, and none is its own neighbour.
    """
    count = min(count, len(rows) - own)
    places = np.zeros((len(asked), max(count, 0)), np.intp)
    if count <= 0:
        return places, np.zeros(places.shape, np.float32)
    cosines = np.zeros(places.shape, np.float32)
    for start in range(0, len(asked), _PIECE):
        part = slice(start, start + _PIECE)
        like = asked[part] @ rows.T
        if own:
            like[np.arange(len(like)), np.arange(start, start + len(like))] = -np.inf
        order = np.argsort(-like, axis=1, kind="stable")[:, :count]
        places[part], cosines[part] = order, np.take_along_axis(like, order, axis=1)
    return places, cosines


def word_vectors(texts: Sequence[str]) -> Vectors:
    """Vectors from the words and pieces of words alone (latent semantic analysis, Deerwester et al.
    1990), for where there is no encoder; comparable among the texts of one call only.
    """
    features = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)
    # A vectorizer refuses texts that are all empty.
    x = features.fit_transform([text.strip() or "(empty)" for text in texts])
    width = min(WIDTH, *(size - 1 for size in x.shape))
    if width < 1:
        return np.ones((len(texts), 1), np.float32)
    with np.errstate(invalid="ignore"):
        # Texts that are all the same have no variance to explain.
        dense = TruncatedSVD(width, random_state=0).fit_transform(x).astype(np.float32)
    return dense / np.maximum(np.linalg.norm(dense, axis=1, keepdims=True), 1e-9)
