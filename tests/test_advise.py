from __future__ import annotations

import pytest

from tunesmith.advise import FEW_ROWS, NEARLY, Approach, advise


@pytest.mark.parametrize(
    ("scores", "rows", "approach", "reason"),
    [
        ({"base": 0.1, "prompt": 0.4, "tuned": 0.6}, 500, "fine-tuning", "(prompt) by 0.20"),
        ({"base": 0.1, "classical": 0.6, "tuned": 0.6}, 500, "prompting", "classical does as well"),
        ({"base": 0.1, "tuned": 0.0}, 20, "prompting", "base does as well"),
        ({"base": 0.1, "prompt": NEARLY}, 500, "prompting", "already reaches 0.95"),
        ({"base": 0.1, "prompt": 0.5}, FEW_ROWS - 1, "more-data", "99 rows to train on"),
        ({"base": 0.1, "prompt": 0.5}, FEW_ROWS, "fine-tuning", "100 rows to train on"),
        ({"tuned": 0.9}, 1500, "fine-tuning", "1,500 rows"),
        ({}, 1500, "fine-tuning", "1,500 rows"),
    ],
)
def test_advice_follows_from_what_was_measured(
    scores: dict[str, float], rows: int, approach: Approach, reason: str
) -> None:
    said = advise(scores, metric="exact", rows=rows, measured_on=24)
    assert said.approach == approach
    assert reason in said.reasons[-1]


def test_the_first_reason_is_the_measurement() -> None:
    said = advise({"base": 0.125, "tuned": 0.5}, metric="chrf", rows=9, measured_on=24)
    assert said.reasons[0] == "chrf on 24 validation rows: base 0.12, tuned 0.50."
    nothing = advise({}, metric="chrf", rows=9, measured_on=0)
    assert nothing.reasons[0].startswith("Nothing was measured")
