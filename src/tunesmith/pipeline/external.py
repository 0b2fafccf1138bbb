"""Models on other people's servers in a run: an arm of their own, and proposals for prompts."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tunesmith.data.examples import Conversation
from tunesmith.endpoint import CONCURRENCY, EndpointChat, Spent, cost, key_of, open_endpoint
from tunesmith.errors import EngineError, OverBudget
from tunesmith.evaluate.evaluation import Arm, Measured
from tunesmith.evaluate.instructions import proposed
from tunesmith.evaluate.prompts import diverse
from tunesmith.models import fetch
from tunesmith.pipeline.begin import Screen
from tunesmith.pipeline.measure import Bench, search_entry
from tunesmith.recipe import Recipe
from tunesmith.sections import Endpoint

PROPOSALS = 3
SHOWN = 16
"""Training rows that a proposer sees."""


def answers_folder() -> Path:
    """Where the answers of endpoints are kept, whichever run asked for them."""
    return fetch.home() / "answers"


def keys(recipe: Recipe) -> None:
    """See that the keys of all endpoints are there, before anything is computed.

    Raises:
        UsageError: one is not.
    """
    for section in ("external", "proposer", "judge"):
        endpoint: Endpoint | None = getattr(recipe, section)
        if endpoint is not None:
            key_of(endpoint, section)


async def proposals(recipe: Recipe, bench: Bench, screen: Screen) -> dict[str, Any]:
    """{"texts", "by", "spent"}: instructions that `proposer` made of training rows, with what they
    cost; no texts where none is named.

    Raises:
        UsageError: its key is not there.
        EngineError: it does not answer, or would cost too much.
    """
    endpoint = recipe.proposer
    if endpoint is None or not {"prompt", "external"} & set(recipe.arms):
        return {"texts": [], "by": None, "spent": None}
    shown = diverse(bench.train, bench.chosen.task, SHOWN, bench.seed)
    screen.say(f"{len(shown)} training rows are sent to {endpoint.base_url} for proposals")
    async with open_endpoint(endpoint, "proposer", answers_folder()) as chat:
        texts = await proposed(chat, shown, PROPOSALS)
        spent = chat.spent
    screen.say(f"{endpoint.model} proposed {len(texts)} instructions: {told(spent)}")
    return {"texts": list(texts), "by": endpoint.model, "spent": asdict(spent)}


async def explore(
    recipe: Recipe,
    bench: Bench,
    validation: Sequence[Conversation],
    tests: int,
    texts: Sequence[str],
    screen: Screen,
) -> dict[str, Any] | None:
    """The prompt that suits the external model, by the same search; None without an endpoint.

    It comes before anything is trained, so that what is wrong with the endpoint, or with its budget
    for the test rows, is known by then.

    Raises:
        UsageError: its key is not there.
        EngineError: it does not answer, or would cost too much.
    """
    endpoint = recipe.external
    if endpoint is None:
        return None
    screen.say(f"validation and test rows are sent to {endpoint.base_url}")
    async with open_endpoint(endpoint, "external", answers_folder()) as chat:
        plan = await bench.find_prompt(validation, texts=texts, model=chat)
        spent = chat.spent
    screen.say(f"{endpoint.model}: {plan.description}; {told(spent)}")
    if spent.usd is not None and spent.answers and endpoint.budget_usd is not None:
        coming = spent.usd / spent.answers * min(tests, recipe.evaluate.limit)
        if spent.usd + coming > endpoint.budget_usd:
            raise OverBudget(
                f"{endpoint.model} cost US$ {spent.usd:.4f} for {spent.answers} answers, and the "
                f"test rows would take about {coming:.4f} more: external.budget_usd is "
                f"{endpoint.budget_usd:g}",
                remedy="All answers are kept. Type the same command with "
                f"--set external.budget_usd={1.5 * (spent.usd + coming):.2g}, or a smaller "
                "evaluate.limit.",
            )
    return {
        "prompt": plan.name,
        "tried": plan.tried,
        "search": search_entry(plan),
        "spent": asdict(spent),
    }


async def compare(
    recipe: Recipe,
    bench: Bench,
    explored: Mapping[str, Any],
    rows: Sequence[Conversation],
) -> tuple[Measured | None, dict[str, Any]]:
    """The external arm on the test rows, and its part of report.json.

    A server that fails now leaves the arm out, with the reason: what was trained is not lost for it.

    Raises:
        OverBudget: a higher budget, and the same command goes on from here.
    """
    endpoint, before = recipe.external, explored.get("external")
    if endpoint is None or before is None:
        return None, {"value": None, "reason": "no endpoint was named"}
    texts, spent = explored["proposals"]["texts"], Spent(**before["spent"])
    try:
        async with open_endpoint(
            endpoint, "external", answers_folder(), before=spent.usd or 0.0
        ) as chat:
            plan = await bench.find_prompt((), texts=texts, known=before["prompt"], model=chat)
            arm = Arm("external", "external", chat, plan.build)
            measured = await bench.run(arm, rows, CONCURRENCY)
            both = chat.spent
    except OverBudget:
        raise
    except EngineError as error:
        return None, {"value": None, "reason": str(error)}
    about = {
        "model": endpoint.model,
        "base_url": endpoint.base_url,
        "prompt": plan.name,
        "search": before["search"],
        "tried": [{"name": name, "validation": score} for name, score in before["tried"]],
        "spent": {"search": asdict(spent), "test rows": asdict(both)},
    }
    return measured, about


@asynccontextmanager
async def opened(endpoint: Endpoint, screen: Screen) -> AsyncGenerator[EndpointChat]:
    """The external model for any rows; what was spent is told at the end."""
    screen.say(f"rows are sent to {endpoint.base_url}")
    async with open_endpoint(endpoint, "external", answers_folder()) as chat:
        yield chat
        screen.say(f"{endpoint.model}: {told(chat.spent)}")


def priced(entry: dict[str, Any], endpoint: Endpoint | None) -> dict[str, Any]:
    """The external arm's entry of report.json with what 1,000 answers cost at its prices; any other
    as it is."""
    if endpoint is None or entry["kind"] != "external":
        return entry
    usd = cost(endpoint, 1000 * entry["tokens_in"], 1000 * entry["tokens_out"])
    reason = "external.usd_per_1m_in and external.usd_per_1m_out are not given"
    return {**entry, "usd_per_1000": {"value": None, "reason": reason} if usd is None else usd}


def told(spent: Spent) -> str:
    """What was spent, in words."""
    kept = f", {spent.kept} of them kept from before" if spent.kept else ""
    empty = f", {spent.empty} of them empty" if spent.empty else ""
    usd = "at a price that is not known" if spent.usd is None else f"for US$ {spent.usd:.4f}"
    refused = f"; the server takes no {', '.join(spent.left_out)}" if spent.left_out else ""
    return f"{spent.answers} answers{kept}{empty}, {usd}{refused}"
