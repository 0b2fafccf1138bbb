"""What costs nothing: a linear classifier for labels, the nearest training row for the rest."""

from __future__ import annotations

import random
import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import make_union
from sklearn.svm import LinearSVC

from tunesmith.chat import (
    ChatModel,
    Completion,
    Message,
    SamplingParams,
    Tool,
    Usage,
    answer_text,
)
from tunesmith.data.examples import Conversation
from tunesmith.graders.choose import Task

MOST_ROWS = 50_000
MOST_COMPARED = 1000
"""Rows that are compared each with each."""


class Classical(ChatModel, Protocol):
    """A ChatModel that says what it is."""

    @property
    def description(self) -> str:
        """One phrase for the user: the method and the rows it was fitted on."""
        ...


def fit(
    train: Iterable[Conversation], task: Task, *, limit: int = MOST_ROWS, seed: int = 0
) -> Classical:
    """The classical arm for a task, fitted on the training rows; the same rows, the same model.

    Labels: TF-IDF of words (1-2) and characters (2-5) under a linear support vector machine.
    Everything else: the answer of the nearest row by cosine of TF-IDF.

    Args:
        limit: of more rows than this a seeded random sample is used, and `description` says so.
    """
    rows, seen = sample_rows(train, limit, seed)
    assert rows, "the classical arm is fitted on at least one training row"
    of = f"{len(rows):,} training rows"
    of += f" (sampled from {seen:,})" if seen > len(rows) else ""
    if task != "labels":
        return _Nearest(Neighbours(rows), f"the nearest of {of} by TF-IDF")
    answers = [answer_text(row.answer).strip() for row in rows]
    if len(set(answers)) == 1:
        return _Classifier(None, None, answers[0], f"the only label of {of}")
    features = _features()
    x = features.fit_transform([question(row.prompt) for row in rows])
    machine = LinearSVC(random_state=seed)
    with warnings.catch_warnings():
        # A solver that stops before its tolerance still classifies; its score is measured anyway.
        warnings.simplefilter("ignore", ConvergenceWarning)
        machine.fit(x, answers)
    return _Classifier(features, machine, "", f"TF-IDF and a linear classifier on {of}")


def sample_rows(
    train: Iterable[Conversation], limit: int, seed: int
) -> tuple[list[Conversation], int]:
    """At most `limit` rows, each as likely, in one pass (Vitter 1985, algorithm R); and how many."""
    rng, kept, seen = random.Random(seed), [], 0
    for row in train:
        seen += 1
        if len(kept) < limit:
            kept.append(row)
        elif (place := rng.randrange(seen)) < limit:
            kept[place] = row
    return kept, seen


def question(messages: Sequence[Message]) -> str:
    """What is asked: every turn of the prompt but the system's, which rows have in common."""
    turns = [answer_text(message) for message in messages if message.role != "system"]
    # A vectorizer refuses texts that are all empty.
    return "\n".join(turns).strip() or "(empty)"


def _features() -> Any:
    # \S covers what \w does not, so that a text of signs or emoji has features too.
    words = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\w+|[^\w\s]", sublinear_tf=True)
    signs = TfidfVectorizer(
        analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True, max_features=200_000
    )
    return make_union(words, signs)


class Neighbours:
    """Training rows, found by the likeness of their questions (cosine of TF-IDF)."""

    def __init__(self, rows: Sequence[Conversation]) -> None:
        self.rows = rows
        self._features = TfidfVectorizer(
            analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True, max_features=200_000
        )
        self._index: Any = self._features.fit_transform([question(row.prompt) for row in rows])

    def nearest(self, messages: Sequence[Message], count: int) -> list[Conversation]:
        """The `count` nearest rows, nearest first; of equally near ones the earlier."""
        asked: Any = self._features.transform([question(messages)])
        likeness = (self._index @ asked.T).toarray()[:, 0]
        return [self.rows[i] for i in np.argsort(-likeness, kind="stable")[:count]]

    def covering(self, count: int, seed: int) -> list[Conversation]:
        """`count` rows to which all others are likest, the one that says most of them first.

        Greedy maximisation of the facility location function (Lin and Bilmes 2011, ACL), on a
        seeded sample of at most MOST_COMPARED rows.
        """
        total = len(self.rows)
        some = random.Random(seed).sample(range(total), min(total, MOST_COMPARED))
        likeness: Any = (self._index[some] @ self._index[some].T).toarray()
        best, chosen = np.zeros(len(some)), list[int]()
        while len(chosen) < min(count, len(some)):
            gains = np.maximum(likeness - best[:, None], 0.0).sum(axis=0)
            gains[chosen] = -1.0
            chosen.append(int(gains.argmax()))
            best = np.maximum(best, likeness[:, chosen[-1]])
        return [self.rows[some[i]] for i in chosen]


@dataclass(frozen=True, slots=True)
class _Classifier:
    features: Any
    machine: Any
    only: str
    description: str

    async def complete(
        self, messages: Sequence[Message], params: SamplingParams, tools: Sequence[Tool] = ()
    ) -> Completion:
        start = time.perf_counter()
        text = self.only
        if self.machine is not None:
            text = str(self.machine.predict(self.features.transform([question(messages)]))[0])
        return Completion(text, "stop", Usage(0, 0), time.perf_counter() - start)


@dataclass(frozen=True, slots=True)
class _Nearest:
    neighbours: Neighbours
    description: str

    async def complete(
        self, messages: Sequence[Message], params: SamplingParams, tools: Sequence[Tool] = ()
    ) -> Completion:
        start = time.perf_counter()
        answer = self.neighbours.nearest(messages, 1)[0].answer
        reason = "tool_calls" if answer.tool_calls else "stop"
        seconds = time.perf_counter() - start
        return Completion(answer_text(answer), reason, Usage(0, 0), seconds, answer.tool_calls)
