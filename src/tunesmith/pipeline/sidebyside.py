"""Any models on any rows, side by side, without training."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from tunesmith.chat import SamplingParams, answer_text
from tunesmith.data.examples import Conversation
from tunesmith.errors import UsageError
from tunesmith.evaluate.comparison import compare_all
from tunesmith.evaluate.evaluation import Arm, Measured
from tunesmith.evaluate.evaluation import evaluate as evaluate_arm
from tunesmith.models import fetch
from tunesmith.models.template import ChatTemplate
from tunesmith.pipeline import external, measure, prepare
from tunesmith.pipeline.begin import Screen
from tunesmith.pipeline.talk import deployment
from tunesmith.recipe import Recipe
from tunesmith.serve.router import Deployment, Router
from tunesmith.store import Store


def evaluate(recipe: Recipe, arms: Sequence[str], screen: Screen) -> dict[str, Any]:
    """Every row of the data answered by every arm; the parts of report.json that follow from it.

    Args:
        arms: `base`, names of models, or `external`, the recipe's endpoint.

    Raises:
        UsageError: an arm is not known or named twice, or the recipe names no endpoint.
    """
    if "external" in arms and recipe.external is None:
        raise UsageError(
            "--arm external, but the recipe names no endpoint",
            expected="external.base_url and external.model",
            remedy="Type --set external.base_url=https://... --set external.model=...",
        )
    if len(set(arms)) < len(arms):
        raise UsageError(f"--arm {' --arm '.join(arms)}", expected="each arm once")
    with Store.at(fetch.home()) as store:
        places = {
            name: deployment(store, recipe.model.name if name == "base" else name, say=screen.say)
            for name in arms
            if name != "external"
        }
        first = next(iter(places.values()), None) or deployment(
            store, recipe.model.name, say=screen.say
        )
        tuned = {model.name for model in store.models()}
    template = ChatTemplate.load(first.base_folder)
    data = recipe.data.model_copy(update={"validation": 0, "test": 0})
    prepared = prepare.gather(data, template, seed=recipe.train.seed)
    report = prepare.examine(prepared, data, template)
    screen.checked(prepared, report)
    prepare.refuse(prepared, data, report)
    rows = prepare.demonstrations(prepared.dataset)[: recipe.evaluate.limit]
    measured, chosen = asyncio.run(_measure(arms, places, tuned, rows, recipe, template, screen))
    pairs = compare_all(measured, chosen.primary)
    return {
        "primary": chosen.primary,
        "graders": chosen.reason,
        "data": prepared.counts(),
        "arms": [external.priced(measure.arm_entry(arm), recipe.external) for arm in measured],
        "comparisons": [asdict(pair) for pair in pairs],
    }


async def _measure(
    arms: Sequence[str],
    places: dict[str, Deployment],
    tuned: set[str],
    rows: Sequence[Conversation],
    recipe: Recipe,
    template: ChatTemplate,
    screen: Screen,
) -> tuple[list[Measured], measure.Chosen]:
    chosen = measure.pick_graders(rows, recipe.evaluate.graders)
    screen.say(chosen.reason)
    longest = max(template.tokens(answer_text(row.answer)) for row in rows)
    asked = recipe.evaluate.max_tokens
    params = SamplingParams(max_tokens=longest + longest // 4 + 8 if asked == "auto" else asked)
    found: list[Measured] = []

    async def measured(arm: Arm, concurrency: int) -> None:
        found.append(
            await evaluate_arm(
                arm,
                rows,
                chosen.graders,
                params=params,
                concurrency=concurrency,
                progress=lambda done, total: screen.progress(arm.name, done, total),
            )
        )

    async with Router(logs=fetch.home() / "logs", max_rows=measure.CONCURRENCY) as router:
        for name in arms:
            if name == "external" and recipe.external is not None:
                async with external.opened(recipe.external, screen) as chat:
                    await measured(Arm(name, name, chat), external.CONCURRENCY)
                continue
            model = (await router.engine(places[name])).chat(places[name].name)
            arm = Arm(name, "tuned" if name in tuned else "base", model, scorer=model)
            await measured(arm, measure.CONCURRENCY)
    return found, chosen
