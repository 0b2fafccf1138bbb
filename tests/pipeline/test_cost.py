"""Before a run and after it: the forecast, the ways, the arms' calls, the break-even."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tunesmith import cost, prices
from tunesmith import recipe as recipes
from tunesmith.cost import Amount
from tunesmith.evaluate.evaluation import Measured, Sample
from tunesmith.pipeline import cost as pipeline
from tunesmith.pipeline.folder import RunFolder
from tunesmith.recipe import Recipe

PRICED = """
compiled: 2026-11-20
tokens:
- {provider: us, model: big, input: 2.0, output: 10.0, as_of: "2026-11", confidence: low, source: mine}
"""


def test_a_run_is_forecast_before_and_held_against_it_afterwards(made: Any) -> None:
    planned, spent = made.folder.read_json("forecast.json"), made.report["cost"]
    assert planned["dry_run"]["schedule"]["steps"] == 15
    for unit in ("cpu_seconds", "seconds"):
        said = planned[unit]
        assert 0 < said["low"] < said["value"]
        assert spent["actual"][unit] > 0
        share = spent["actual"][unit] / spent["forecast"][unit]["value"]
        assert spent["ratio"][unit] == pytest.approx(share)
    # Nearly all of so small a run is its start-up; how busy this machine is decides the rest.
    assert 0.3 < spent["ratio"]["cpu_seconds"] < 3
    assert (spent["steps"], spent["planned_steps"]) == (15, 15)
    events = [event["type"] for event in made.folder.events()]
    assert events.count("spent") == events.count("training") == 1


def test_what_is_not_known_is_null_with_the_reason(made: Any) -> None:
    report = made.report
    assert "facts.usd_per_hour" in report["cost"]["usd"]["reason"]
    for arm in report["arms"]:
        assert arm["usd_per_1000"]["value"] is None
        serving = report["cost"]["serving"][arm["name"]]
        assert serving["tokens_in"]["value"] == pytest.approx(arm["tokens_in"])
        assert serving["tokens_in"]["low"] <= arm["tokens_in"] <= serving["tokens_in"]["high"]
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_the_report_has_every_way_and_where_tuned_breaks_even(made: Any) -> None:
    section = made.report["cost"]
    assert {way["place"] for way in section["ways"]} == {"here", "rented", "hosted"}
    assert len(section["break_even"]) == 3
    for item in section["break_even"]:
        fixed, calls = item["usd_per_month"]["value"], item["calls_per_month"]["value"]
        assert calls == pytest.approx(1000 * fixed / item["usd_per_1000"]["value"])
    assert section["hidden"] == list(cost.HIDDEN)
    assert "Prices as compiled on" in section["prices"]
    assert made.report["advice"]["priors"][0] == "Rule of thumb: prompting first, always."
    assert "Forecast: training takes" in made.report["advice"]["reasons"][-1]


def test_a_training_that_was_killed_has_no_known_cost(made: Any, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_json("forecast.json", made.folder.read_json("forecast.json"))
    lines = [event for event in made.folder.events() if event["type"] != "spent"]
    folder.write_lines("events.jsonl", lines)
    assert "killed" in pipeline.after(folder)["reason"]


def test_a_forecast_can_be_left_out(made: Any, tmp_path: Path, screen: Any) -> None:
    wanted = recipes.with_values(made.run.recipe, {"evaluate.forecast": False})
    folder = RunFolder(tmp_path)
    pipeline.before(wanted, made.run.model, folder, screen.say)
    assert "evaluate.forecast=false" in folder.read_json("forecast.json")["reason"]
    assert pipeline.after(folder)["value"] is None
    several = recipes.with_values(made.run.recipe, {"train.processes": 2})
    pipeline.before(several, made.run.model, folder, screen.say)
    assert "evaluate.forecast=false" in folder.read_json("forecast.json")["reason"]


def measured(arm: str) -> Measured:
    rows = [
        Sample(str(n), "p", "r", "o", {}, tokens_in=500, tokens_out=50, seconds=3.2, finish_reason="stop")
        for n in range(64)
    ]  # fmt: skip
    return Measured(arm, "base", tuple(rows), {})


def test_each_arm_costs_what_its_model_does(tmp_path: Path) -> None:
    own = tmp_path / "prices.yaml"
    own.write_text(PRICED)
    known = pipeline.table(own)
    here = recipes.with_values(Recipe(), {"facts.usd_per_hour": 0.72})

    def usd(arm: str, recipe: Recipe) -> Any:
        return pipeline.serve(measured(arm), recipe, known)["usd_per_1000"]

    def theirs(model: str, **prices: float) -> Any:
        there = {"base_url": "https://there/v1", "model": model, **prices}
        return usd("external", recipes.parse({"external": there}))

    # 500 in and 50 out at 2 and 10 US$ a million; 64 at once, 3.2 s each, 0.72 US$ an hour.
    assert theirs("big")["value"] == pytest.approx(1.5)
    assert "no row for bigger" in theirs("bigger")["reason"]
    assert theirs("big", usd_per_1m_in=4, usd_per_1m_out=20)["value"] == pytest.approx(3)
    assert usd("tuned", here)["value"] == pytest.approx(0.01)
    assert usd("tuned", Recipe())["value"] is None
    named = recipes.with_values(here, {"model.name": "big"})
    assert usd("prompt", named)["value"] == pytest.approx(1.5)
    assert usd("tuned", named)["value"] == pytest.approx(0.01)


def test_the_break_even_is_worked_by_hand(tmp_path: Path) -> None:
    own = tmp_path / "prices.yaml"
    own.write_text(PRICED)
    known = pipeline.table(own)
    recipe = recipes.with_values(
        recipes.parse({"external": {"base_url": "https://there/v1", "model": "big"}}),
        {"facts.usd_per_hour": 0.1, "facts.knowledge_changes": "monthly"},
    )
    work = cost.Work(1000, 100, 1, 1000, 10**8, 10**6, False)
    calls = {"external": {"usd_per_1000": Amount.known(1.5).to_json()}, "tuned": {}}
    found = pipeline.even(work, Amount.known(12), calls, recipe, known)
    # 730 h at 0.1 US$, and 12 * (1 + 1/12) for training: 86 US$ a month, 1.5 US$ for 1,000 calls.
    assert found[0]["usd_per_month"]["value"] == pytest.approx(86)
    assert found[0]["calls_per_month"]["value"] == pytest.approx(86 / 1.5 * 1000)
    assert (found[0]["tuned_on"], found[0]["instead_of"]) == ("this machine", "big")
    assert pipeline.even(work, Amount.known(12), {}, recipe, known) == []
    kept = recipes.with_values(recipe, {"facts.data_may_leave": "no"})
    assert pipeline.even(work, Amount.known(12), calls, kept, known) == []
    planned = {"seconds": Amount.known(7200).to_json()}
    assert [way.usd.value for way in pipeline.ways(work, planned, kept, known)] == [0.2]


def test_prices_at_home_go_over_those_that_ship(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path))
    assert pipeline.table().model("big") is None
    (tmp_path / prices.FILE).write_text(PRICED)
    assert pipeline.table().model("big") is not None


def test_costs_are_told_without_a_run(wanted: Recipe, screen: Any) -> None:
    recipe = recipes.with_values(wanted, {"facts.usd_per_hour": 0.36})
    found = pipeline.cost_of(recipe, screen, pipeline.table())
    assert found["rows"]["train"] == 60
    ledger = found["tokens"]
    assert ledger["computed"] <= (ledger["trained"] + ledger["masked"]) * ledger["epochs"]
    here = found["ways"][0]
    assert here["place"] == "here"
    assert here["usd"]["value"] == pytest.approx(here["hours"]["value"] * 0.36)
    for place in ("rented", "hosted"):
        usd = [way["usd"]["value"] for way in found["ways"] if way["place"] == place]
        told = [x for x in usd if x is not None]
        assert told == sorted(told)
        assert all(x is None for x in usd[len(told) :])
    # What is read and what is answered, of each row, in another model's tokens.
    each = (ledger["masked"] / 60, ledger["trained"] / 60)
    mini = next(item for item in found["calls"] if item["model"] == "gpt-5.4-mini")
    assert mini["usd_per_1000"]["value"] == pytest.approx((0.75 * each[0] + 4.5 * each[1]) / 1000)
    assert all(math.isfinite(item["usd_per_1000"]["high"]) for item in found["calls"])
    assert any("training will take" in text for text in screen.said)
