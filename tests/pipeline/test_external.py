from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tunesmith import recipe as recipes
from tunesmith.chat import Message
from tunesmith.data.examples import Conversation, Source
from tunesmith.errors import OverBudget, UsageError
from tunesmith.pipeline import external, measure, prepare
from tunesmith.pipeline.measure import Bench
from tunesmith.pipeline.sidebyside import evaluate
from tunesmith.recipe import Recipe
from tunesmith.testing import byte_template

THINGS = ("parcel", "refund", "address", "invoice")
PRICES = {"usd_per_1m_in": 1.0, "usd_per_1m_out": 2.0}


def row(name: str, i: int) -> Conversation:
    turns = (
        Message("user", f"the {THINGS[i % 4]} no {name}{i}"),
        Message("assistant", THINGS[i % 4]),
    )
    return Conversation(turns, Source(name, i))


HELD, TESTS = ([row(name, i) for i in range(n)] for name, n in (("held", 24), ("test", 30)))


@pytest.fixture
def bench() -> Bench:
    train = [row("train", i) for i in range(40)]
    return Bench(
        engine=None,  # type: ignore[arg-type]
        template=byte_template(),
        train=train,
        chosen=measure.pick_graders(train, ()),
        max_tokens=8,
        seed=0,
        told=lambda what, done, total: None,
    )


def recipe_of(theirs: Any, **values: Any) -> Recipe:
    endpoint = {"base_url": theirs.url, "model": "large", **values}
    return recipes.parse({"external": endpoint})


def right(body: dict[str, Any], number: int) -> str:
    """Knows the answer where it is told what to answer with."""
    told = any("exactly" in message["content"] for message in body["messages"])
    question = body["messages"][-1]["content"]
    return next(thing for thing in THINGS if thing in question) if told else "Hello!"


def explore(recipe: Recipe, bench: Bench, screen: Any, tests: int = 30) -> Any:
    return asyncio.run(external.explore(recipe, bench, HELD, tests, [], screen))


def compare(recipe: Recipe, bench: Bench, explored: Any) -> Any:
    found = {"external": explored, "proposals": {"texts": []}}
    # As it comes back from explore.json.
    found = json.loads(json.dumps(found))
    return asyncio.run(external.compare(recipe, bench, found, TESTS))


def test_the_arm_answers_with_the_prompt_that_suits_it_and_its_price_is_measured(
    theirs: Any, bench: Bench, screen: Any
) -> None:
    theirs.script = right
    recipe = recipe_of(theirs, **PRICES, budget_usd=1)
    explored = explore(recipe, bench, screen)
    assert explored["prompt"] == "no examples, instruction"
    assert explored["search"]["answers"] == len(theirs.seen) == 80
    assert any(f"rows are sent to {theirs.url}" in said for said in screen.said)
    measured, about = compare(recipe, bench, explored)
    assert len(theirs.seen) == 80 + 30
    assert (measured.arm, measured.kind) == ("external", "external")
    assert measured.scores["exact"].value == 1.0
    entry = external.priced(measure.arm_entry(measured), recipe.external)
    # 4 words of the row, 14 of the instruction; one word back
    assert (entry["tokens_in"], entry["tokens_out"]) == (18, 1)
    assert entry["usd_per_1000"] == pytest.approx(1000 * (18 * 1.0 + 1 * 2.0) / 1e6)
    assert about["model"] == "large"
    assert about["spent"]["test rows"]["usd"] == pytest.approx(30 * 20 / 1e6)
    assert 0 < entry["latency_p50"] <= entry["latency_p95"]


def test_a_run_that_is_repeated_costs_nothing_and_tells_the_first_latency(
    theirs: Any, bench: Bench, screen: Any
) -> None:
    theirs.script = right
    recipe = recipe_of(theirs)
    first, _ = compare(recipe, bench, explore(recipe, bench, screen))
    asked = len(theirs.seen)
    again, about = compare(recipe, bench, explore(recipe, bench, screen))
    assert len(theirs.seen) == asked
    assert about["spent"]["test rows"]["kept"] == 30
    for a, b in zip(first.samples, again.samples, strict=True):
        # The client's own time for reading and writing is in one and not in the other.
        assert b.seconds <= a.seconds
        assert b == replace(a, seconds=b.seconds)
        assert b.seconds > 0
    usd = external.priced(measure.arm_entry(again), recipe.external)["usd_per_1000"]
    assert usd["value"] is None
    assert "external.usd_per_1m_in" in usd["reason"]


def test_a_budget_that_the_test_rows_would_pass_is_known_before_training(
    theirs: Any, bench: Bench, screen: Any
) -> None:
    recipe = recipe_of(theirs, **PRICES, budget_usd=0.01)
    assert explore(recipe, bench, screen, tests=30) is not None
    with pytest.raises(
        OverBudget, match=r"test rows would take about .*external\.budget_usd is 0.01"
    ):
        explore(recipe, bench, screen, tests=400)


def test_the_budget_is_one_for_search_and_test_rows(theirs: Any, bench: Bench, screen: Any) -> None:
    recipe = recipe_of(theirs, **PRICES, budget_usd=1)
    explored = explore(recipe, bench, screen)
    less = recipes.with_values(recipe, {"external.budget_usd": explored["spent"]["usd"] + 1e-4})
    with pytest.raises(OverBudget, match="All answers are kept"):
        compare(less, bench, explored)
    measured, _ = compare(recipe, bench, explored)
    assert len(measured.samples) == 30


def test_a_server_that_fails_at_the_end_leaves_the_arm_out_with_the_reason(
    theirs: Any, bench: Bench, screen: Any
) -> None:
    recipe = recipe_of(theirs)
    explored = explore(recipe, bench, screen)
    theirs.script = lambda body, number: (401, {}, {"error": {"message": "revoked"}})
    measured, about = compare(recipe, bench, explored)
    assert measured is None
    assert about["value"] is None
    assert "revoked" in about["reason"]


def test_without_an_endpoint_nothing_is_asked(bench: Bench, screen: Any) -> None:
    assert explore(Recipe(), bench, screen) is None
    measured, about = compare(Recipe(), bench, None)
    assert (measured, about) == (None, {"value": None, "reason": "no endpoint was named"})
    made = asyncio.run(external.proposals(Recipe(), bench, screen))
    assert made == {"texts": [], "by": None, "spent": None}
    assert screen.said == []
    entry = {"kind": "base", "usd_per_1000": 3}
    assert external.priced(entry, None) is entry


def test_a_proposer_sees_training_rows_alone_and_what_it_says_is_tried(
    theirs: Any, bench: Bench, screen: Any
) -> None:
    theirs.script = lambda body, number: (
        '```json\n["Name the exactly one thing.", "Be short."]\n```'
    )
    proposer = {"base_url": theirs.url, "model": "wise", **PRICES}
    recipe = recipes.parse({"proposer": proposer})
    made = asyncio.run(external.proposals(recipe, bench, screen))
    assert made["texts"] == ["Name the exactly one thing.", "Be short."]
    assert (made["by"], made["spent"]["answers"]) == ("wise", 1)
    assert made["spent"]["usd"] > 0
    (asked,) = theirs.seen
    lines = {line for line in asked["messages"][0]["content"].splitlines() if "user:" in line}
    assert lines <= {f"user: {row('train', i).prompt[0].content}" for i in range(40)}
    assert len(lines) == external.SHOWN
    none = recipes.with_values(recipe, {"evaluate.arms": ["base", "tuned"]})
    assert asyncio.run(external.proposals(none, bench, screen))["texts"] == []


def test_any_rows_are_answered_by_the_endpoint_that_the_recipe_names(
    theirs: Any, wanted: Recipe, tmp_path: Path, write_rows: Callable[..., Path], screen: Any
) -> None:
    rows = [{"prompt": f"say {n}", "completion": ("yes", "no")[n % 2]} for n in range(40)]
    values = {
        "data.files": [str(write_rows(tmp_path, rows))],
        "external": {"base_url": theirs.url, "model": "large", **PRICES},
    }
    report = evaluate(recipes.with_values(wanted, values), ["external"], screen)
    (arm,) = report["arms"]
    assert (arm["name"], arm["kind"]) == ("external", "external")
    assert arm["scores"][report["primary"]]["value"] == 0.5
    assert arm["usd_per_1000"] == pytest.approx(1000 * (2 * 1.0 + 1 * 2.0) / 1e6)
    assert "40 answers, for US$ 0.0002" in screen.said[-1]
    with pytest.raises(UsageError, match=r"Type --set external\.base_url="):
        evaluate(wanted, ["external"], screen)


def test_a_budget_does_not_make_another_run(theirs: Any, made: Any) -> None:
    def key(recipe: Recipe) -> str:
        run = made.run
        return prepare.run_key(recipe, run.prepared, run.model, run.template)

    named = recipe_of(theirs, **PRICES)
    more = recipes.with_values(named, {"external.budget_usd": 5})
    other = recipes.with_values(named, {"external.model": "larger"})
    assert key(named) == key(more) != key(other)
