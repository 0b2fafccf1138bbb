from __future__ import annotations

import numpy as np

from tunesmith.graders.choose import choose
from tunesmith.graders.exact import EXACT
from tunesmith.graders.labels import LABELS
from tunesmith.graders.structured import CALLS, json_grader
from tunesmith.graders.text import TEXT


def test_every_grader_gives_the_metrics_it_names() -> None:
    for grader in (EXACT, LABELS, json_grader(), TEXT):
        given = grader.grade("{}", "{}")
        corpus = {metric.name for metric in grader.corpus}
        assert set(given) | corpus == set(grader.metrics)
        assert grader.primary in given
    assert set(CALLS.grade("a", "b")) | {"f1"} == set(CALLS.metrics)


def test_a_corpus_metric_is_a_function_of_sums_over_rows() -> None:
    outputs, references = ["a", "b", "b"], ["a", "a", "b"]
    for metric in choose(["a", "b"] * 4, with_tools=False).graders[0].corpus:
        whole = metric.counts(outputs, references)
        assert whole.shape[0] == 3
        np.testing.assert_allclose(metric.value(whole.sum(0)[None]), [2 / 3])
