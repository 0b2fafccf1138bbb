from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.errors import UsageError
from tunesmith.evaluate.comparison import (
    Comparison,
    Noise,
    Verdict,
    compare,
    compare_all,
    goal_reached,
    holm,
    noise_floor,
    verdict,
)
from tunesmith.evaluate.evaluation import ArmKind, Measured, Sample, summarise
from tunesmith.evaluate.statistics import Interval

N = 100


def arm(name: str, right: int, *, n: int = N, kind: ArmKind | None = None) -> Measured:
    """An arm that gets the first `right` of `n` rows right."""
    samples = tuple(
        Sample(
            id=f"t:{i}",
            prompt=f"q{i}",
            reference="a",
            output="a" if i < right else "b",
            scores={"exact": float(i < right)},
            tokens_in=1,
            tokens_out=1,
            seconds=0.0,
            finish_reason="stop",
            cluster=f"q{i}",
        )
        for i in range(n)
    )
    return Measured(name, kind or name, samples, summarise(samples, ()))  # type: ignore[arg-type]


def judge(
    tuned: Measured,
    base: Measured | None,
    prompt: Measured | None = None,
    classical: Measured | None = None,
    *,
    goal: float | None = None,
    noise: Noise | None = None,
    comparisons: Sequence[Comparison] = (),
) -> Verdict:
    others = [arm for arm in (prompt, classical) if arm is not None]
    return verdict(
        tuned, base, others, comparisons,
        metric="exact", task="labels", goal=goal, noise=noise,
    )  # fmt: skip


def test_a_comparison_by_hand() -> None:
    found = compare(arm("tuned", 80), arm("base", 70), "exact")
    assert (found.a, found.b, found.metric, found.n) == ("tuned", "base", "exact", N)
    assert found.difference == pytest.approx(0.10)
    assert found.p == pytest.approx(2 / 1024)
    assert 0.03 < found.low < 0.10 < found.high < 0.18


def test_rows_are_matched_by_id_and_only_those_both_answered_count() -> None:
    tuned, base = arm("tuned", 80), arm("base", 10, n=20)
    turned = Measured("base", "base", base.samples[::-1], base.scores)
    assert compare(tuned, turned, "exact") == compare(tuned, base, "exact")
    assert compare(tuned, base, "exact").n == 20
    assert compare(tuned, base, "exact").difference == pytest.approx(0.5)


def test_a_metric_that_rows_do_not_have_is_refused() -> None:
    with pytest.raises(UsageError, match="no row in common that is scored by f1"):
        compare(arm("tuned", 1), arm("base", 1), "f1")


def test_trap_30_noise_is_measured_and_a_gain_within_it_is_a_no() -> None:
    noise = noise_floor(arm("base", 40), arm("base", 52), "exact")
    assert (noise.difference, noise.changed, noise.n) == (pytest.approx(0.12), 0.12, N)
    tuned, base = arm("tuned", 50), arm("base", 40)
    assert judge(tuned, base).ship
    found = judge(tuned, base, noise=noise)
    assert not found.ship
    assert "differs from itself by 0.12" in found.sentence


def test_ship_it_with_its_numbers() -> None:
    found = judge(arm("tuned", 80), arm("base", 0), arm("prompt", 20), arm("classical", 65))
    assert found.ship
    assert found.sentence == (
        "Ship it: tuned answers 0.80 of 100 unseen rows exactly as the reference against"
        " 0.00 for the base (+0.80, 95 % 0.70 to 0.87), 0.20 for prompting alone"
        " (+0.60, 0.49 to 0.68) and 0.65 for the classifier (+0.15, 0.08 to 0.22)."
    )


def test_no_when_the_gain_may_be_chance() -> None:
    found = judge(arm("tuned", 42), arm("base", 40))
    assert not found.ship
    assert found.sentence.startswith("Do not ship it: ")
    assert "may be chance (p = 0.5)" in found.sentence


def test_no_when_it_does_worse() -> None:
    found = judge(arm("tuned", 20), arm("base", 60))
    assert not found.ship
    assert "it does worse than base" in found.sentence


def test_no_on_too_few_rows() -> None:
    found = judge(arm("tuned", 5, n=5), arm("base", 0, n=5))
    assert not found.ship
    assert "5 rows are too few to rule out chance" in found.sentence


@pytest.mark.parametrize(("right", "how"), [(79, "as well"), (95, "better")])
def test_what_is_cheap_and_does_as_well_is_named_instead(right: int, how: str) -> None:
    found = judge(arm("tuned", 80), arm("base", 0), arm("prompt", 20), arm("classical", right))
    assert not found.ship
    assert found.sentence.startswith("Use the classifier instead: ")
    assert found.sentence.endswith(f"the classifier does {how}, untrained.")
    prompted = judge(arm("tuned", 80), arm("base", 0), arm("prompt", right))
    assert prompted.sentence.startswith("Use prompting alone instead: ")


def test_a_lead_that_some_more_rows_would_prove_asks_for_them() -> None:
    tuned, near = arm("tuned", 80), arm("classical", 77)
    lead = compare(tuned, near, "exact")
    assert lead.low < 0 < lead.difference
    # The half-width falls with the root of the rows, to the lead itself.
    needed = 100 * ((0.03 - lead.low) / 0.03) ** 2
    found = judge(tuned, arm("base", 0), classical=near)
    assert not found.ship
    assert found.sentence.startswith("Do not ship it yet: ")
    assert found.sentence.endswith(
        "; the lead over the classifier, untrained, may be chance: "
        f"about {math.ceil(needed / 10) * 10} test rows would tell."
    )


def test_where_tuning_gains_nothing_what_does_is_named() -> None:
    found = judge(arm("tuned", 1), arm("base", 0), classical=arm("classical", 70))
    assert found.sentence.startswith("Use the classifier instead: ")
    neither = judge(arm("tuned", 1), arm("base", 0), classical=arm("classical", 1))
    assert neither.sentence.startswith("Do not ship it: ")


def test_the_goal_is_answered() -> None:
    tuned, base = arm("tuned", 80), arm("base", 0)
    sure, reached, missed = (judge(tuned, base, goal=goal) for goal in (0.7, 0.75, 0.9))
    assert sure.ship
    assert sure.sentence.endswith("; the goal of 0.7 is reached (95 % 0.71 to 0.87).")
    assert reached.ship
    assert reached.sentence.endswith(
        "; the goal of 0.75 is reached, but that may be chance (95 % 0.71 to 0.87)."
    )
    assert not missed.ship
    assert missed.sentence.endswith("; the goal of 0.9 is not reached (95 % 0.71 to 0.87).")


def test_the_goal_is_answered_whatever_else_is_said() -> None:
    tuned, base = arm("tuned", 42), arm("base", 40)
    for found in (
        judge(tuned, base, goal=0.9),
        judge(tuned, None, goal=0.9),
        judge(tuned, arm("base", 0), arm("prompt", 60), goal=0.9),
    ):
        assert not found.ship
        assert "; the goal of 0.9 is not reached (95 % 0.32 to 0.52)." in found.sentence


@pytest.mark.parametrize(
    ("goal", "said"), [(0.6, "reached"), (0.71, "may be chance"), (0.8, "may be chance"),
                       (0.81, "not reached")],
)  # fmt: skip
def test_a_goal_is_reached_surely_perhaps_or_not(goal: float, said: str) -> None:
    assert goal_reached(Interval(0.8, 0.7, 0.9, 100), goal) == said


def test_holm_by_hand() -> None:
    # 3 x 0.01, 2 x 0.02 and 1 x 0.03, which must not fall below the one before
    assert holm([0.03, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_never_lowers_p_and_keeps_its_order(p: list[float]) -> None:
    adjusted = holm(p)
    assert all(a >= b for a, b in zip(adjusted, p, strict=True))
    assert all(a <= min(1.0, len(p) * b) + 1e-12 for a, b in zip(adjusted, p, strict=True))
    for i, j in combinations(range(len(p)), 2):
        assert (p[i] < p[j]) <= (adjusted[i] <= adjusted[j])


def test_every_pair_has_its_own_p_and_one_for_their_number() -> None:
    arms = [arm("tuned", 9), arm("base", 0), arm("prompt", 1)]
    pairs = compare_all(arms, "exact")
    assert [(pair.a, pair.b) for pair in pairs] == [
        ("tuned", "base"), ("tuned", "prompt"), ("base", "prompt"),
    ]  # fmt: skip
    assert [pair.p for pair in pairs] == pytest.approx([2 / 2**9, 2 / 2**8, 1.0])
    assert [pair.p_adjusted for pair in pairs] == pytest.approx([6 / 2**9, 4 / 2**8, 1.0])
    assert compare(*arms[:2], "exact").p_adjusted == pairs[0].p


def test_a_lead_that_only_many_comparisons_explain_is_none() -> None:
    tuned, base = arm("tuned", 7), arm("base", 0)
    assert judge(tuned, base).ship
    weak = [replace(pair, p_adjusted=4 * pair.p) for pair in compare_all([tuned, base], "exact")]
    found = judge(tuned, base, comparisons=weak)
    assert not found.ship
    assert "too few to rule out chance among so many arms (p = 0.016, adjusted 0.062)" in (
        found.sentence
    )


def test_no_verdict_without_a_base() -> None:
    found = judge(arm("tuned", 80), None, arm("prompt", 20))
    assert not found.ship
    assert found.sentence.startswith("No verdict: ")
    assert "the base was not measured" in found.sentence


def test_comparisons_are_read_in_either_direction() -> None:
    tuned, base = arm("tuned", 80), arm("base", 0)
    given = [compare(base, tuned, "exact")]
    assert judge(tuned, base, comparisons=given) == judge(tuned, base)


def test_the_sentence_names_the_metric_and_the_task() -> None:
    tuned, base, near = arm("tuned", 80), arm("base", 0), arm("classical", 30)
    found = verdict(tuned, base, [near], (), metric="exact", task="json")
    assert "gives the reference's values on 0.80 of 100 unseen rows" in found.sentence
    assert "0.30 for the nearest training row" in found.sentence


def test_retrieval_is_a_rival_and_a_second_tuned_model_only_where_it_leads() -> None:
    base, tuned, rag = arm("base", 10), arm("tuned", 60), arm("rag", 60)
    options = {"metric": "exact", "task": "text"}
    found = verdict(tuned, base, [rag], (), **options)  # type: ignore[arg-type]
    assert found.sentence.startswith("Use retrieval alone instead: ")
    assert found.sentence.endswith("retrieval alone does as well, untrained.")
    same = verdict(tuned, base, [arm("rag+tuned", 60)], (), **options)  # type: ignore[arg-type]
    assert same.ship
    assert "0.60 for retrieval with a model tuned for it" in same.sentence
    better = verdict(tuned, base, [arm("rag+tuned", 90)], (), **options)  # type: ignore[arg-type]
    assert not better.ship
    assert better.sentence.endswith("; retrieval with a model tuned for it does better.")


def test_an_external_model_is_used_instead_only_where_it_does_better_and_rows_may_leave() -> None:
    tuned, base = arm("tuned", 80), arm("base", 40)

    def said(right: int, *, may_leave: bool) -> Verdict:
        return verdict(
            tuned, base, (), (), metric="exact", task="labels",
            external=arm("external", right), may_leave=may_leave,
        )  # fmt: skip

    assert said(95, may_leave=True).sentence.startswith("Use the external model instead: tuned")
    assert not said(95, may_leave=True).ship
    for right, may_leave in ((95, False), (80, True), (82, True), (10, True)):
        assert said(right, may_leave=may_leave).ship
        assert "for the external model" in said(right, may_leave=may_leave).sentence
