from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from tunesmith import recipe as recipes
from tunesmith.advise import Facts, advise
from tunesmith.pipeline import advice
from tunesmith.recipe import Recipe
from tunesmith.sections import FactsSection


def rows(scores: Sequence[float], tokens: int = 10) -> list[dict[str, Any]]:
    return [
        {
            **{"id": f"rows:{n}", "cluster": str(n), "score": score},
            **{"tokens_in": tokens, "tokens_out": 2, "seconds": 0.1 * (n + 1)},
        }
        for n, score in enumerate(scores)
    ]


def test_evidence_is_paired_over_the_rows_that_both_arms_answered() -> None:
    # Of 24 rows 12 are right by the base, and these and 8 more by the tuned model.
    answers = {"base": rows([1] * 12 + [0] * 12), "tuned": rows([1] * 20 + [0] * 4, 4), "odd": []}
    found = advice.evidence(answers, metric="exact", train=300, recipe=Recipe(), costs=("So.",))
    assert (found.measured_on, found.rows, set(found.scores)) == (24, 300, {"base", "tuned"})
    lead = found.lead("tuned", "base")
    assert lead.value == pytest.approx(8 / 24)
    assert 0.1 < lead.low < lead.value < lead.high < 0.6
    assert found.scores["tuned"].low < found.scores["base"].high
    assert found.latency_p95["base"] == pytest.approx(2.3)
    assert found.tokens_in == {"base": 10, "tuned": 4}
    said = advise(found)
    assert said.approach == "fine-tuning"
    assert said.reasons[-1] == "So."


def test_facts_of_the_recipe_are_those_of_the_advice() -> None:
    assert advice.facts(FactsSection()) == Facts()
    said = FactsSection(
        knowledge_changes="weekly",
        task_frequency="rare",
        calls_per_month=10,
        latency_p95=0.5,
        data_may_leave="no",
    )
    assert advice.facts(said) == Facts("weekly", "rare", 10, 0.5, False)


def test_yes_and_no_are_what_yaml_makes_of_them() -> None:
    for word in ("no", '"no"', "false"):
        assert recipes.read(None, [f"facts.data_may_leave={word}"]).facts.data_may_leave == "no"
    assert recipes.read(None, ["facts.data_may_leave=yes"]).facts.data_may_leave == "yes"


def test_five_questions_are_asked_in_plain_words_and_only_those_that_are_open() -> None:
    heard: list[str] = []

    def ask(question: str, choices: Sequence[str]) -> str:
        heard.append(question)
        return choices[0] if choices else "12"

    said = advice.asked(Recipe(), ask)
    assert len(heard) == 5
    assert said == {
        "facts.knowledge_changes": "never",
        "facts.task_frequency": "rare",
        "facts.calls_per_month": "12",
        "facts.latency_p95": "12",
        "facts.data_may_leave": "yes",
    }
    settled = recipes.with_values(Recipe(), said)
    assert settled.facts.calls_per_month == 12
    assert advice.asked(settled, ask) == {}
    assert len(heard) == 5
    assert advice.asked(Recipe(), lambda question, choices: "") == {}


def test_what_training_takes_is_a_sentence() -> None:
    planned = {"seconds": {"value": 600.0, "low": 540.0, "high": 660.0}}
    said = advice.training_costs(planned, FactsSection(usd_per_hour=0.6))
    assert said == ["Forecast: training takes 10 min (9 to 11) here, US$ 0.1."]
    assert advice.training_costs(planned, FactsSection()) == [
        "Forecast: training takes 10 min (9 to 11) here."
    ]
    assert advice.training_costs({"value": None, "reason": "off"}, FactsSection()) == []
