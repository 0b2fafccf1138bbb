"""Costs and advice as tables in the terminal, and the five questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, RenderableType
from rich.prompt import FloatPrompt, Prompt
from rich.table import Table

from tunesmith.screen import plain

SHOWN = 4
"""Ways shown of a kind; --json has all."""


def ask(question: str, choices: Sequence[str]) -> str:
    """A question at the terminal; Enter, which means unknown, is the empty string."""
    console = Console(stderr=True, highlight=False)
    if choices:
        said = Prompt.ask(
            question, choices=[*choices, "unknown"], default="unknown", console=console
        )
        return "" if said == "unknown" else said
    number = FloatPrompt.ask(
        f"{question} [dim](Enter: unknown)[/]", default=-1.0, show_default=False, console=console
    )
    return "" if number < 0 else f"{number:g}"


def money(entry: Mapping[str, Any]) -> str:
    """An amount of US dollars with its range, or why there is none."""
    if entry["value"] is None:
        return f"unknown: {entry['reason']}"
    figures = [entry[key] for key in ("value", "low", "high")]
    value, low, high = ("?" if x is None else _figure(x) for x in figures)
    return value if low == high else f"{value} ({low} to {high})"


def _figure(x: float) -> str:
    return f"{x:,.0f}" if x >= 100 else f"{x:.2f}" if x >= 0.1 else f"{x:.2g}"


def costs(found: Mapping[str, Any]) -> list[RenderableType]:
    """What `tunesmith cost` found."""
    tokens, forecast = found["tokens"], found["forecast"]
    read = tokens["trained"] + tokens["masked"]
    told = f"{read:,} tokens in {found['rows']['train']:,} training rows, {tokens['trained']:,} of "
    told += f"them trained, {tokens['epochs']:g} times"
    if "computed" in tokens:
        share = tokens["computed"] / (read * tokens["epochs"])
        told += f"; {tokens['computed']:,.0f} are computed ({share:.0%}), as shared ones count once"
    lines: list[RenderableType] = [plain(told)]
    if "dry_run" in forecast:
        held = forecast["memory_mb"]
        cpu = money(forecast["cpu_seconds"])
        lines.append(plain(f"on this machine {held:,} MB of memory and {cpu} CPU seconds"))
    else:
        lines.append(plain(forecast["reason"]))
    if "ways" in found:
        lines += ["", ways(found["ways"])]
    lines += ["", calls(found["calls"]), *(plain(text, "dim") for text in under(found))]
    return lines


def under(found: Mapping[str, Any]) -> list[str]:
    """What stands under the figures."""
    assumed = "; ".join(found["assumptions"])
    return ["", found["prices"], f"Assumed: {assumed}.", "Not in any figure:", *found["hidden"]]


def ways(found: Sequence[Mapping[str, Any]]) -> Table:
    """Ways of training, a few of each place."""
    table = _table("training", ("", "where", "hours", "US$", "of", ""))
    counts: dict[str, int] = {}
    for way in found:
        counts[way["place"]] = counts.get(way["place"], 0) + 1
        if counts[way["place"]] > SHOWN:
            continue
        hours, usd = way["hours"]["value"], way["usd"]
        notes = [*way["notes"], *([usd["reason"]] if usd["value"] is None else [])]
        table.add_row(
            *(plain(way["place"]), plain(way["name"])),
            "-" if hours is None else f"{hours:.2f}",
            "unknown" if usd["value"] is None else money(usd),
            *(plain(way["as_of"]), plain("; ".join(notes), "dim")),
        )
    return table


def calls(found: Sequence[Mapping[str, Any]]) -> Table:
    """1,000 calls at hosted models, the cheapest and the dearest."""
    table = _table("1,000 calls of the rows as they are", ("model", "US$", "of", ""))
    shown = [*found[:SHOWN], *found[SHOWN:][-2:]]
    for item in shown:
        ends = f"ends on {item['ends']}" if item["ends"] else ""
        tuned = "tuned" if item["tuned"] else ""
        table.add_row(
            plain(f"{item['provider']} {item['model']}"),
            plain(money(item["usd_per_1000"])),
            plain(item["as_of"]),
            plain("; ".join(text for text in (tuned, ends) if text), "dim"),
        )
    return table


def advice(found: Mapping[str, Any]) -> list[RenderableType]:
    """An advice with its reasons, and the rules of thumb beside it."""
    said = found["advice"]
    lines: list[RenderableType] = [plain(f"advice: {said['approach']}", "bold")]
    lines += [plain(f"  {reason}") for reason in said["reasons"]]
    return [*lines, *(plain(f"  {prior}", "dim") for prior in said.get("priors", ()))]


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in columns:
        figure = column in ("hours", "US$", "of")
        table.add_column(column, no_wrap=figure, justify="right" if figure else "left")
    return table
