from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.advise import APPROACH, FEW_ROWS, SIMPLEST, Evidence, Facts, Score, advise


def evidence(rows: int = 500, measured_on: int = 24, **arms: float) -> Evidence:
    """Arms by name (`both` is rag+tuned), each with an interval of 0.05 to either side."""
    named = {"rag+tuned" if name == "both" else name: value for name, value in arms.items()}
    scores = {name: Score(value, value - 0.05, value + 0.05) for name, value in named.items()}
    return Evidence("exact", scores, rows, measured_on)


def knowing(found: Evidence, **facts: Any) -> Evidence:
    return replace(found, facts=Facts(**facts))


@pytest.mark.parametrize(
    ("found", "approach", "reason"),
    [
        (evidence(base=0.1, prompt=0.4, tuned=0.6), "fine-tuning", "tuned leads prompt"),
        (evidence(base=0.1, classical=0.6, tuned=0.6), "prompting", "classical does as well"),
        (evidence(base=0.1, prompt=0.5, tuned=0.56), "prompting", "may be chance"),
        (evidence(base=0.1, prompt=0.4, rag=0.7), "rag", "rag leads prompt"),
        (evidence(prompt=0.4, rag=0.7, tuned=0.72, both=0.74), "rag", "rag leads prompt"),
        (evidence(prompt=0.4, rag=0.45, tuned=0.7, both=0.72), "fine-tuning", "tuned leads"),
        (evidence(prompt=0.4, rag=0.6, tuned=0.6, both=0.9), "rag+fine-tuning", "rag+tuned leads"),
        (evidence(rag=0.9, tuned=0.4), "rag", "rag does as well"),
        (evidence(prompt=0.5, external=0.9, tuned=0.7), "prompting", "external does as well"),
        (evidence(base=0.1, prompt=0.95), "prompting", "already reaches 0.95"),
        (replace(evidence(prompt=0.8), goal=0.75), "prompting", "0.80, which is wanted"),
        (evidence(FEW_ROWS - 1, base=0.1, prompt=0.5), "more-data", "there are 99 to train on"),
        (evidence(FEW_ROWS, base=0.1, prompt=0.5), "fine-tuning", "100 rows are enough to try"),
        (evidence(99, base=0.1, tuned=0.15), "more-data", "may be chance on so few rows"),
        (evidence(measured_on=0), "fine-tuning", "500 rows are enough to try"),
    ],
)
def test_what_was_measured_decides_and_the_simpler_way_wins_a_tie(
    found: Evidence, approach: str, reason: str
) -> None:
    said = advise(found)
    assert said.approach == approach
    assert any(reason in text for text in said.reasons), said.reasons


def test_a_paired_difference_goes_before_intervals_that_overlap() -> None:
    close = evidence(base=0.1, prompt=0.5, tuned=0.56)
    paired = replace(close, leads={("prompt", "tuned"): Score(-0.06, -0.10, -0.02)})
    assert advise(close).approach == "prompting"
    said = advise(paired)
    assert said.approach == "fine-tuning"
    assert "by 0.06 (0.02 to 0.10)" in said.reasons[1]


def test_the_first_reason_is_the_measurement() -> None:
    said = advise(evidence(9, base=0.125, tuned=0.5))
    assert said.reasons[0] == (
        "Measured: exact on 24 validation rows: base 0.12 (0.07 to 0.17), tuned 0.50 (0.45 to 0.55)."
    )
    assert advise(evidence(measured_on=0)).reasons[0].startswith("Nothing was measured")


def test_rules_of_thumb_stand_beside_what_was_measured_and_do_not_outrank_it() -> None:
    said = advise(evidence(60, base=0.1, prompt=0.2, tuned=0.9))
    assert said.approach == "fine-tuning"
    assert "Rule of thumb: under about 100 good rows prompting usually wins." in said.priors
    assert not [text for text in said.reasons if text.startswith("Rule of thumb")]
    assert said.priors[0] == "Rule of thumb: prompting first, always."


def test_a_learning_curve_that_still_rises_asks_for_more_rows() -> None:
    flat = evidence(prompt=0.5, tuned=0.48)
    rising = replace(flat, doubling=Score(0.05, 0.02, 0.08))
    assert advise(flat).approach == "prompting"
    assert advise(rising).approach == "more-data"
    assert advise(replace(flat, doubling=Score(0.05, -0.01, 0.11))).approach == "prompting"


TIED = evidence(prompt=0.5, tuned=0.5)
LONG = replace(TIED, tokens_in={"prompt": 900, "tuned": 90})
HOSTED = replace(evidence(prompt=0.4, external=0.6, tuned=0.62), break_even=(1000, 2000))
AHEAD = replace(evidence(prompt=0.4, external=0.5, tuned=0.62), break_even=(1000, 2000))


@pytest.mark.parametrize(
    ("found", "facts", "before", "after"),
    [
        (evidence(prompt=0.4, tuned=0.7), {"knowledge_changes": "weekly"}, "fine-tuning", "rag+fine-tuning"),
        (evidence(prompt=0.5, rag=0.5), {"knowledge_changes": "daily"}, "fine-tuning", "rag+fine-tuning"),
        (evidence(prompt=0.5, rag=0.5, tuned=0.5), {"knowledge_changes": "daily"}, "prompting", "rag"),
        (evidence(prompt=0.5, rag=0.3, tuned=0.5), {"knowledge_changes": "daily"}, "prompting", "prompting"),
        (evidence(prompt=0.5, rag=0.5, tuned=0.5), {"knowledge_changes": "yearly"}, "prompting", "prompting"),
        (evidence(prompt=0.4, tuned=0.55), {"task_frequency": "rare"}, "fine-tuning", "prompting"),
        (evidence(prompt=0.4, tuned=0.9), {"task_frequency": "rare"}, "fine-tuning", "fine-tuning"),
        (evidence(prompt=0.4, tuned=0.55), {"calls_per_month": 5}, "fine-tuning", "prompting"),
        (LONG, {"task_frequency": "constant"}, "prompting", "fine-tuning"),
        (LONG, {"task_frequency": "daily"}, "prompting", "prompting"),
        (LONG, {"calls_per_month": 200_000}, "prompting", "fine-tuning"),
        (HOSTED, {"calls_per_month": 5000}, "prompting", "fine-tuning"),
        (HOSTED, {"calls_per_month": 1500}, "prompting", "prompting"),
        (AHEAD, {"calls_per_month": 500}, "fine-tuning", "prompting"),
        (evidence(prompt=0.4, external=0.7, tuned=0.6), {"data_may_leave": False}, "prompting", "fine-tuning"),
        (evidence(prompt=0.4, external=0.7, tuned=0.6), {"data_may_leave": True}, "prompting", "prompting"),
        (replace(evidence(base=0.4, prompt=0.6, tuned=0.6), latency_p95={"base": 0.4, "prompt": 3.0, "tuned": 0.4}), {"latency_p95": 1.0}, "prompting", "fine-tuning"),
    ],
)  # fmt: skip
def test_each_fact_turns_the_advice_and_the_advice_says_so(
    found: Evidence, facts: dict[str, Any], before: str, after: str
) -> None:
    assert advise(found).approach == before
    said = advise(knowing(found, **facts))
    assert said.approach == after
    turned = f"This turns the advice from {before} to {after}."
    assert any(text.endswith(turned) for text in said.facts) == (before != after)
    assert set(said.facts) <= set(said.reasons)
    assert all(text.startswith("You said: ") for text in said.facts)


def test_a_wish_that_no_arm_meets_rules_none_out() -> None:
    slow = replace(TIED, latency_p95={"prompt": 3.0, "tuned": 2.0})
    said = advise(knowing(slow, latency_p95=1.0))
    assert said.approach == "prompting"
    assert "no arm is" in said.facts[0]


def test_a_fact_that_was_not_said_is_named_where_the_advice_hangs_on_it() -> None:
    said = advise(evidence(prompt=0.4, external=0.7, tuned=0.6))
    assert "If the data may not leave, the advice is fine-tuning" in said.reasons[-1]


values = st.dictionaries(st.sampled_from(sorted(APPROACH)), st.floats(0, 1), max_size=7)
facts = st.builds(
    Facts,
    st.sampled_from([None, "never", "monthly", "weekly", "daily"]),
    st.sampled_from([None, "rare", "daily", "constant"]),
    st.sampled_from([None, 1.0, 1000.0, 1e6]),
    st.none(),
    st.sampled_from([None, True, False]),
)


@given(values, st.integers(0, 19))
def test_on_thirty_rows_of_anything_it_is_prompting_or_more_data(
    arms: dict[str, float], measured_on: int
) -> None:
    scores = {name: Score(value, value, value) for name, value in arms.items() if name != "rag"}
    found = Evidence("exact", scores, 30, measured_on)
    assert advise(found).approach in ("prompting", "more-data")


@given(values, facts, st.integers(1, 5000), st.integers(0, 400))
def test_every_advice_has_reasons_and_never_loses_to_a_simpler_way_without_a_fact(
    arms: dict[str, float], known: Facts, rows: int, measured_on: int
) -> None:
    scores = {name: Score(value, value - 0.1, value + 0.1) for name, value in arms.items()}
    found = Evidence("exact", scores, rows, measured_on, facts=known)
    said = advise(found)
    assert said.approach in (*SIMPLEST, "more-data")
    assert all(text.strip().endswith((".", ")")) for text in (*said.reasons, *said.priors))
    plain = advise(replace(found, facts=Facts()))
    arm = found.best.get(plain.approach) if plain.approach != "more-data" else None
    if arm is not None:
        assert not [a for a in scores if APPROACH[a] in SIMPLEST[: SIMPLEST.index(APPROACH[arm])]
                    and found.leads_by(a, arm)]  # fmt: skip


@given(st.floats(0, 1), st.floats(0, 1), st.integers(1, 5000))
def test_more_rows_never_turn_training_down(prompt: float, base: float, rows: int) -> None:
    order = ("more-data", "prompting", "fine-tuning")
    scores = {"base": Score(base, base, base), "prompt": Score(prompt, prompt, prompt)}
    less, more = (advise(Evidence("exact", scores, n, 24)).approach for n in (rows, rows + 100))
    assert order.index(more) >= order.index(less)
