"""A report's first screen: five questions, each answered by a sentence and its numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

APPROACHES = {
    "prompting": "No: a simpler way does",
    "rag": "No: look things up (RAG)",
    "fine-tuning": "Yes, fine-tune",
    "rag+fine-tuning": "Yes, with documents looked up (RAG)",
    "more-data": "Not yet: more data first",
}
Part = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Told:
    """A question, its answer in a few words, the sentences behind it, and the section that has more."""

    question: str
    answer: str
    more: tuple[str, ...]
    anchor: str


def headline(report: Part) -> list[Told]:
    """Should I, how much better, what does it cost, what did it lose, what next; from report.json."""
    return [_should(report), _better(report), _cost(report), _lost(report), _next(report)]


def _should(report: Part) -> Told:
    question, advice = "Should I fine-tune?", _part(report, "advice")
    approach = str(advice.get("approach"))
    if approach not in APPROACHES:
        return Told(question, "Not measured", (_reason(advice),), "advice")
    reasons = [str(reason) for reason in advice["reasons"]]
    return Told(question, APPROACHES[approach], tuple(reasons[1:2] or reasons[:1]), "advice")


def _better(report: Part) -> Told:
    question, metric = "How much better?", report.get("primary")
    pairs = [_tuned_first(pair) for pair in _listed(report, "comparisons")]
    pairs = [pair for pair in pairs if pair and pair["metric"] == metric]
    if not pairs:
        return Told(
            question, "Not measured", ("The tuned model was compared with nothing.",), "arms"
        )
    base = next((pair for pair in pairs if pair["b"] == "base"), pairs[0])
    rivals = [pair for pair in pairs if pair is not base]
    said = f"{metric}, over {base['b']} on {base['n']:,} unseen rows."
    more = [f"95 % interval {base['low']:+.2f} to {base['high']:+.2f} {said}"]
    if rivals:
        hard = min(rivals, key=lambda pair: float(pair["difference"]))
        span = f"{hard['difference']:+.2f} ({hard['low']:+.2f} to {hard['high']:+.2f})"
        more.append(f"Over {hard['b']}, the strongest rival: {span}.")
    return Told(question, f"{base['difference']:+.2f}", tuple(more), "comparisons")


def _tuned_first(pair: Part) -> Part | None:
    """The comparison as tuned - b; None where tuned is not in it, or nothing was measured."""
    if not isinstance(pair.get("difference"), int | float) or "tuned" not in (pair["a"], pair["b"]):
        return None
    if pair["a"] == "tuned":
        return pair
    turned = {"difference": -pair["difference"], "low": -pair["high"], "high": -pair["low"]}
    return {**pair, "a": pair["b"], "b": pair["a"], **turned}


def _cost(report: Part) -> Told:
    question, cost = "What does it cost?", _part(report, "cost")
    took = cost.get("training_seconds")
    if not isinstance(took, int | float):
        return Told(question, "Not measured", (_reason(cost),), "cost")
    forecast = _part(_part(cost, "forecast"), "seconds")
    said = f"training here (forecast {duration(forecast['value'])})" if _known(forecast) else ""
    more = [said or "training here"]
    arms = {arm["kind"]: arm for arm in _listed(report, "arms")}
    if "tuned" in arms:
        more.append(_call(arms["tuned"], arms.get("prompt")))
    for even in _listed(cost, "break_even")[:1]:
        calls = even["calls_per_month"]
        if _known(calls):
            more.append(
                f"Pays from {_rounded(calls['value'])} calls a month, against {even['instead_of']}."
            )
    return Told(question, duration(took), tuple(more), "cost")


def _call(tuned: Part, prompt: Part | None) -> str:
    usd = tuned.get("usd_per_1000")
    said = f"{tuned['tokens_in']:,.0f} tokens in a call"
    if prompt is not None:
        said += f", {prompt['tokens_in']:,.0f} when prompting"
    return said + (f"; US$ {usd:.3g} per 1,000 calls." if isinstance(usd, int | float) else ".")


def _lost(report: Part) -> Told:
    question, forgetting = "What did it lose?", _part(report, "forgetting")
    score = _part(_part(forgetting, "general"), "score")
    if "difference" not in score:
        return Told(question, "Not measured", (_reason(forgetting),), "forgetting")
    span = f"{score['low']:+.2f} to {score['high']:+.2f}"
    more = [f"general ability, {score['base']:.2f} before, {score['tuned']:.2f} after ({span})."]
    if isinstance(forgetting.get("kl"), int | float):
        more.append(f"{forgetting['kl']:.2f} nats a token from the base on general prompts.")
    lost = score["high"] < 0
    answer = f"{score['difference']:+.2f}" if lost else "Nothing that shows"
    return Told(question, answer, tuple(more), "forgetting")


def _next(report: Part) -> Told:
    enough = _part(report, "data_enough")
    said = [_part(enough, part).get("sentence") for part in ("doubling", "rows_for_goal", "power")]
    sentences = tuple(str(sentence) for sentence in said if sentence)
    verdict = _part(report, "verdict")
    answer = "Ship it" if verdict.get("ship") else "Read the losses below"
    if _part(report, "advice").get("approach") == "more-data":
        answer = "Label more rows"
    return Told("What next?", answer, sentences or (_reason(enough),), "answers")


def duration(seconds: float) -> str:
    """As people say it: 41 s, 4 min 10 s, 2 h 05 min."""
    if seconds < 60:
        return f"{seconds:.2g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def _rounded(value: float) -> str:
    """Two digits are all that a forecast has."""
    return f"{float(f'{value:.2g}'):,.0f}"


def _part(report: Part, name: str) -> Part:
    found = report.get(name)
    return found if isinstance(found, Mapping) else {}


def _listed(report: Part, name: str) -> Sequence[Part]:
    found = report.get(name)
    return found if isinstance(found, list | tuple) else ()


def _known(figure: Part) -> bool:
    return isinstance(figure.get("value"), int | float)


def _reason(part: Part) -> str:
    return str(part.get("reason", "This run's folder does not hold it."))
