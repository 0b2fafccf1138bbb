"""`tunesmith rank`: a person ranks answers blind, in the terminal."""

from __future__ import annotations

import getpass
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from tunesmith.errors import UsageError
from tunesmith.options import AsJson, out, print_json

if TYPE_CHECKING:
    from tunesmith.evaluate.ranking import Shown
    from tunesmith.pipeline.rank import Desk

WIDE = 100
"""Columns from which answers stand side by side."""
ACTIONS = {"t": "tie", "s": "skip"}


def rank(
    run: Annotated[str, typer.Argument(help="Id or folder of a finished run.")],
    arms: Annotated[
        list[str] | None,
        typer.Option("--arm", help="Arms to rank; tuned and base unless others are named."),
    ] = None,
    rater: Annotated[
        str | None, typer.Option(help="Who rates; the name of the login unless another is given.")
    ] = None,
    results: Annotated[bool, typer.Option("--results", help="Rate nothing: show results.")] = False,
    as_json: AsJson = False,
) -> None:
    """Rank answers blind, side by side; stop and go on at will. Several people may rate one run."""
    from tunesmith.pipeline import rank as ranking

    folder = ranking.find(run)
    if not (results or as_json):
        if not sys.stdin.isatty():
            raise UsageError(
                "there is nobody to press keys: standard input is no terminal",
                remedy="With --results nothing is asked.",
            )
        desk = ranking.open_desk(folder, arms or ["tuned", "base"], rater or getpass.getuser())
        # Not `out`, which never breaks a line.
        sit(desk, Console(highlight=False), typer.getchar)
    people = ranking.tell(folder)
    if as_json:
        print_json(people)
        return
    if not people:
        out.print("nobody has rated this run yet", markup=False)
    for part in people:
        out.print(table(part))


def sit(desk: Desk, console: Console, key: Callable[[], str]) -> None:
    """Show row after row until all are rated or the rater quits.

    Args:
        key: waits for one key.
    """
    again: Shown | None = None
    while True:
        rated = desk.rated()
        row = again or next((row for row in desk.rows if row.id not in rated), None)
        if row is None:
            console.print(f"all {len(desk.rows):,} rows with different answers are rated")
            return
        console.clear()
        console.print(page(row, len(rated), len(desk.rows), desk.rater, console.width))
        again = None
        while True:
            try:
                pressed = key().lower()
            except (KeyboardInterrupt, EOFError):
                pressed = "q"
            if pressed in ("q", ""):
                return
            if pressed == "u":
                again = desk.undo()
                break
            numbers = [str(i) for i in range(1, len(row.arms) + 1)]
            choice = ACTIONS.get(pressed) or (pressed if pressed in numbers else None)
            if choice is not None:
                desk.rate(row, choice)
                break


def page(row: Shown, rated: int, total: int, rater: str, width: int) -> RenderableType:
    """A row as its rater sees it: no arm is named, and no answer stands out."""
    from tunesmith.screen import CONTROLS

    def plain(text: str) -> Text:
        # JSON may have no space to break a line at.
        return Text(text.translate(CONTROLS), overflow="fold")

    count = len(row.answers)
    each = (width - count) // count if width >= WIDE else width
    answers = [
        Panel(plain(text or "(empty)"), title=f"answer {i}", title_align="left", width=each)
        for i, text in enumerate(row.answers, start=1)
    ]
    shown = Columns(answers, padding=(0, 1)) if width >= WIDE else Group(*answers)
    keys = "  ".join(
        [
            f"1-{count} better" if count > 2 else "1 or 2 better",
            "t tie",
            "s skip",
            "u undo",
            "q quit",
        ]
    )
    return Group(
        Text(f"{rated:,} of {total:,} rated by {rater}", "dim"),
        Panel(plain(row.prompt), title="prompt", title_align="left", width=width),
        shown,
        Text(keys, "bold"),
    )


def table(part: dict[str, Any]) -> RenderableType:
    """What people prefer: one entry of the part `people` of report.json."""
    found = Table(box=None, pad_edge=False, title="ranked blind by people", title_justify="left")
    for column in ("", "wins", "ties", "losses", "win rate", "95 %"):
        found.add_column(column, justify="right" if column else "left")
    for pair in part["pairs"]:
        rate = pair["win_rate"]
        counts = [str(pair[name]) for name in ("wins", "ties", "losses")]
        said = (
            ["-", rate["reason"]]
            if rate["value"] is None
            else [f"{rate['value']:.2f}", f"{rate['low']:.2f} to {rate['high']:.2f}"]
        )
        found.add_row(f"{pair['a']} against {pair['b']}", *counts, *said)
    raters = ", ".join(f"{name} {count:,}" for name, count in part["raters"].items())
    lines = [f"ratings: {raters or 'none'}; {part['skipped']:,} skipped"]
    for label, name in (("agreement of raters", "agreement"), ("with the judge", "with_judge")):
        alpha = part[name]
        lines.append(
            f"{label}: {alpha['reason']}"
            if alpha["value"] is None
            else f"{label}: alpha {alpha['value']:.2f} (95 % {alpha['low']:.2f} to "
            f"{alpha['high']:.2f}, {alpha['n']:,} rows; 1 is agreement, 0 is chance)"
        )
    return Group(found, *(Text(line) for line in lines))
