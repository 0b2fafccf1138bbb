"""What a run will cost, what it did cost, and what its arms cost a call."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tunesmith import cost, prices
from tunesmith import recipe as recipes
from tunesmith.cost import Amount, Work
from tunesmith.evaluate.evaluation import Measured
from tunesmith.models import fetch
from tunesmith.models.catalog import ModelSpec
from tunesmith.models.template import ChatTemplate
from tunesmith.pipeline import learn, machine, prepare
from tunesmith.pipeline.begin import Screen
from tunesmith.pipeline.folder import RunFolder
from tunesmith.pipeline.measure import CONCURRENCY
from tunesmith.prices import Prices, TokenPrice
from tunesmith.recipe import Recipe
from tunesmith.sections import Endpoint

FILE = "forecast.json"
ASSUMED = (
    f"this machine is as fast in a long run as in a few steps, to {cost.DRIFT:.0%}",
    "a rented GPU reaches {} to {} of its peak, {} as a rule".format(
        *(f"{cost.UTILISATION[n]:.0%}" for n in (0, 2, 1))
    ),
    f"a rented machine is paid for {cost.SETUP_HOURS[0]:g} to {cost.SETUP_HOURS[2]:g} h beside",
    f"another tokenizer makes {cost.TOKENIZERS[0]:g} to {cost.TOKENIZERS[2]:g} tokens of one of ours",
    f"a training is paid off in {cost.PAID_OFF_MONTHS} months",
    "a deployment of one's own is kept on all month",
)


def table(own: Path | None = None) -> Prices:
    """The prices that ship, those of TUNESMITH_HOME over them, and a file over both.

    Raises:
        UsageError: a table cannot be read.
    """
    at_home = fetch.home() / prices.FILE
    return prices.read([path for path in (at_home if at_home.is_file() else None, own) if path])


def before(recipe: Recipe, model: ModelSpec, folder: RunFolder, say: Callable[[str], None]) -> None:
    """Write forecast.json before training, unless it is there: {"dry_run", "cpu_seconds", "seconds"}.

    Raises:
        TrainingError: the steps fail, as training would.
    """
    if (folder.path / FILE).is_file():
        return
    if not recipe.evaluate.forecast or recipe.train.processes > 1:
        why = "evaluate.forecast=false" if not recipe.evaluate.forecast else "several processes"
        folder.write_json(FILE, Amount.unknown(f"training was not forecast: {why}").to_json())
        return
    path = folder.path / "dry-run.json"
    learn.spec_of(recipe, model, folder).write(path)
    measured = machine.measured("tunesmith.train.dryrun", path)
    path.unlink()
    found = {unit: cost.forecast(measured, unit) for unit in ("cpu_seconds", "seconds")}
    said = {unit: amount.to_json() for unit, amount in found.items()}
    folder.write_json(FILE, {**said, "memory_mb": measured["memory_mb"], "dry_run": measured})
    say(f"training will take {cost.minutes(found['seconds'])} here, forecast from a few real steps")


def after(folder: RunFolder) -> dict[str, Any]:
    """The forecast beside what training took; `cost.checked`."""
    planned = folder.read_json(FILE)
    if "dry_run" not in planned:
        return planned
    events = folder.events()
    spent = [event for event in events if event["type"] == "spent"]
    if len(spent) != sum(event["type"] == "training" for event in events):
        return Amount.unknown("training was killed: what it took until then is not known").to_json()
    steps, validations = (
        sum(event["type"] == kind for event in events) for kind in ("step", "checkpoint")
    )
    return cost.checked(planned, spent, steps, validations)


def ways(work: Work, planned: Mapping[str, Any], recipe: Recipe, known: Prices) -> list[cost.Way]:
    """Each way of training with its cost, the cheaper ones first within a place; only this machine
    where the data may not leave it.
    """
    own = cost.here(Amount.of(planned["seconds"]), hourly(recipe))
    if recipe.facts.data_may_leave == "no":
        return [own]
    today = datetime.now(UTC).date()
    there = [cost.rented(work, row) for row in known.gpus if row.memory_gb >= work.memory_gb]
    trained = [
        cost.hosted(work, row)
        for row in known.tokens
        if row.tuned and not (row.ends and row.ends <= today)
    ]
    return [own, *_cheap(there), *_cheap(trained)]


def hourly(recipe: Recipe) -> float | None:
    """What this machine costs an hour; None is unknown."""
    said = recipe.facts.usd_per_hour
    return None if said == "unknown" else said


def _cheap(found: Sequence[cost.Way]) -> list[cost.Way]:
    return sorted(found, key=lambda way: (way.usd.value is None, way.usd.value))


def work_of(
    recipe: Recipe, counts: Mapping[str, int], ledger: Mapping[str, Any], planned: Mapping[str, Any]
) -> Work:
    """What is to be trained, from the ledger and the dry run; validation rows are taken to be as long
    as training rows.
    """
    measured = planned["dry_run"]
    tokens = ledger["trained"] + ledger["masked"]
    return Work(
        tokens=tokens,
        validation_tokens=round(tokens / counts["train"] * counts["validation"]),
        epochs=float(recipe.train.epochs),
        distinct=measured["schedule"]["tokens"],
        parameters=measured["parameters"],
        learned=measured["learned"],
        full=recipe.method.adapter == "full",
    )


def cost_of(recipe: Recipe, screen: Screen, known: Prices) -> dict[str, Any]:
    """What `tunesmith cost --json` prints.

    Raises:
        DataError: the rows are refused.
        TrainingError: the steps fail.
    """
    machine.able(recipe)
    prepare.learnable(recipe)
    name, revision = recipe.model.name, recipe.model.revision
    model = fetch.resolve(name, revision=revision, say=screen.say)
    template = ChatTemplate.load(model.folder)
    prepared = prepare.gather(recipe.reading, template, seed=recipe.train.seed)
    prepare.refuse(prepared, recipe.reading, prepare.examine(prepared, recipe.reading, template))
    weighed = prepare.weigh(prepared, template)
    settled, _ = prepare.resolve_auto(recipe, prepared.split, weighed, model, template)
    with tempfile.TemporaryDirectory(prefix="tunesmith-cost-") as place:
        folder = RunFolder(Path(place))
        prepare.write_data(prepared, folder)
        screen.say("measuring some steps")
        before(settled, model, folder, screen.say)
        planned = folder.read_json(FILE)
    counts, ledger = prepared.counts(), asdict(weighed)
    found: dict[str, Any] = {
        "model": model.name,
        "rows": {name: counts[name] for name in ("train", "validation", "test")},
        "tokens": {**ledger, "epochs": float(settled.train.epochs)},
        "forecast": planned,
        **told(known),
    }
    if "dry_run" in planned:
        work = work_of(settled, counts, ledger, planned)
        found["tokens"]["computed"] = work.distinct
        found["ways"] = [way.to_json() for way in ways(work, planned, settled, known)]
    rows = counts["train"]
    each = [Amount.known(ledger[part] / rows) for part in ("masked", "trained")]
    found["calls"] = calls(each[0], each[1], known)
    return found


def beforehand(path: Path, known: Prices) -> dict[str, Any]:
    """What training would cost, of a run that has stopped before it; a finished run's report has it.

    Args:
        path: the run's folder.
    """
    folder = RunFolder(path)
    planned, recipe = folder.read_json(FILE), recipes.read(folder.recipe)
    if "dry_run" not in planned:
        return {"forecast": planned, **told(known)}
    rows = {name: len(folder.read_lines(f"data/{name}.jsonl")) for name in ("train", "validation")}
    work = work_of(recipe, rows, folder.read_json("ledger.json"), planned)
    found = [way.to_json() for way in _few(ways(work, planned, recipe, known))]
    return {"forecast": planned, "ways": found, **told(known)}


def into(
    report: dict[str, Any],
    folder: RunFolder,
    recipe: Recipe,
    arms: Mapping[str, Measured],
) -> None:
    """Put into a report what training cost, what each arm costs a call, and where tuned breaks even."""
    known, planned = table(), folder.read_json(FILE)
    section, spent = report["cost"], after(folder)
    section |= spent if "forecast" in spent else {"forecast": spent}
    training = Amount.unknown("training was not timed")
    if "actual" in spent:
        took = Amount.known(spent["actual"]["seconds"])
        training = cost.here(took, hourly(recipe)).usd
    section["usd"] = training.value if training.value is not None else training.to_json()
    serving = {name: serve(found, recipe, known) for name, found in arms.items()}
    for arm in report["arms"]:
        usd = serving[arm["name"]]["usd_per_1000"]
        arm["usd_per_1000"] = usd["value"] if usd["value"] is not None else usd
    section |= {"serving": serving, **told(known)}
    if "dry_run" in planned:
        work = work_of(recipe, report["data"], folder.read_json("ledger.json"), planned)
        found = ways(work, planned, recipe, known)
        section["ways"] = [way.to_json() for way in _few(found)]
        section["break_even"] = even(work, training, serving, recipe, known)


def _few(found: Sequence[cost.Way]) -> list[cost.Way]:
    """This machine, and of each other place the three cheapest."""
    places = dict.fromkeys(way.place for way in found)
    return [way for place in places for way in [w for w in found if w.place == place][:3]]


def serve(found: Measured, recipe: Recipe, known: Prices) -> dict[str, dict[str, Any]]:
    """Tokens, seconds and US dollars of an arm's calls: where its model has a price, by that."""
    rows = found.samples
    tokens_in, tokens_out, seconds = (
        cost.mean([getattr(row, name) for row in rows])
        for name in ("tokens_in", "tokens_out", "seconds")
    )
    row = known.model(recipe.model.name)
    if found.arm == "external" and recipe.external:
        usd = _theirs(tokens_in, tokens_out, recipe.external, known)
    elif row and found.arm in ("base", "prompt", "rag"):
        usd = cost.per_1000(tokens_in, tokens_out, row)
    else:
        usd = cost.per_1000_here(seconds, min(CONCURRENCY, len(rows)), hourly(recipe))
    parts = {"tokens_in": tokens_in, "tokens_out": tokens_out, "seconds": seconds}
    return {key: part.to_json() for key, part in {**parts, "usd_per_1000": usd}.items()}


def _theirs(tokens_in: Amount, tokens_out: Amount, endpoint: Endpoint, known: Prices) -> Amount:
    """By the endpoint's own prices, else by the table's."""
    inward, outward = endpoint.usd_per_1m_in, endpoint.usd_per_1m_out
    if inward is not None and outward is not None:
        thousand = Amount.known(1000 / 1e6)
        each = (tokens_in * Amount.known(inward), tokens_out * Amount.known(outward))
        return (each[0] + each[1]) * thousand
    row = known.model(endpoint.model)
    if row is not None:
        return cost.per_1000(tokens_in, tokens_out, row)
    return Amount.unknown(
        f"external.usd_per_1m_in and external.usd_per_1m_out are not given, and the table of "
        f"prices has no row for {endpoint.model}"
    )


def even(
    work: Work,
    training: Amount,
    serving: Mapping[str, Mapping[str, Any]],
    recipe: Recipe,
    known: Prices,
) -> list[dict[str, Any]]:
    """Calls a month from which the tuned model costs less than prompting a larger one.

    The larger ones read what the prompt arm reads, in their own tokens; only the external arm's
    quality was measured. The tuned model's machine is paid for all month, so that a call adds nothing.
    Where the data may not leave there is nothing to compare with.
    """
    if "tuned" not in serving or recipe.facts.data_may_leave == "no":
        return []
    rate, where = hourly(recipe), "this machine"
    fits = [row for row in known.gpus if row.per_hour and row.memory_gb >= work.memory_gb]
    if rate is None and fits:
        cheapest = min(fits, key=lambda row: row.per_hour or 0.0)
        rate, where = cheapest.per_hour, f"{cheapest.provider} {cheapest.gpu}"
        training = cost.rented(work, cheapest).usd
    hosting = cost.price(rate, "what a machine costs an hour") * Amount.known(cost.MONTH_HOURS)
    fixed = cost.upkeep(training, hosting, recipe.facts.knowledge_changes)
    if recipe.external and "external" in serving:
        larger = [(recipe.external.model, Amount.of(serving["external"]["usd_per_1000"]))]
    else:
        prompted = serving.get("prompt") or serving["tuned"]
        inward, outward = (Amount.of(prompted[key]) for key in ("tokens_in", "tokens_out"))
        priced = [item for item in calls(inward, outward, known) if not item["tuned"]]
        larger = [
            (f"{item['provider']} {item['model']}", Amount.of(item["usd_per_1000"]))
            for item in [*priced[:1], *priced[len(priced) // 2 :][:1], *priced[-1:]]
        ]
    return [
        {
            **{"tuned_on": where, "instead_of": name, "usd_per_1000": usd.to_json()},
            "usd_per_month": fixed.to_json(),
            "calls_per_month": cost.break_even(fixed, Amount.known(0.0), usd).to_json(),
        }
        for name, usd in larger
    ]


def told(known: Prices) -> dict[str, Any]:
    """What stands under every figure: the age of the prices, assumptions, costs without a figure."""
    return {
        "prices": known.age(datetime.now(UTC).date()),
        "assumptions": list(ASSUMED),
        "hidden": list(cost.HIDDEN),
    }


def calls(tokens_in: Amount, tokens_out: Amount, known: Prices) -> list[dict[str, Any]]:
    """1,000 calls at each model that has a price, the cheaper ones first."""
    today = datetime.now(UTC).date()
    priced = [
        (row, cost.per_1000(_other(tokens_in), _other(tokens_out), row))
        for row in known.tokens
        if row.input is not None and row.output is not None and not _ended(row, today)
    ]
    priced.sort(key=lambda pair: pair[1].value or 0.0)
    return [
        {
            **row.model_dump(mode="json", include={"provider", "model", "tuned", "as_of", "ends"}),
            "usd_per_1000": usd.to_json(),
        }
        for row, usd in priced
    ]


def _other(tokens: Amount) -> Amount:
    return tokens * cost.spread(cost.TOKENIZERS)


def _ended(row: TokenPrice, today: Any) -> bool:
    return row.ends is not None and row.ends <= today
