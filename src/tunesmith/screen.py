"""What a person sees in the terminal while something runs, and its tables."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn
from rich.progress import TimeElapsedColumn as Elapsed
from rich.progress import TimeRemainingColumn as Remaining
from rich.table import Table
from rich.text import Text

from tunesmith.checks.report import Report
from tunesmith.pipeline.folder import Event
from tunesmith.pipeline.prepare import Prepared

COLOURS = {"error": "red", "warning": "yellow", "note": "cyan"}
SHOWN_ROWS = 3
CONTROLS = dict.fromkeys(
    {*range(32), *range(127, 160)} - {ord("\t"), ord("\n")}, "\N{REPLACEMENT CHARACTER}"
)
"""Characters of the data that would steer the terminal: with them a row could rewrite the screen."""


class Terminal:
    """Progress on standard error; silent with `quiet`."""

    def __init__(self, *, quiet: bool = False, verbose: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet, highlight=False)
        self._verbose = verbose
        self._bar: Progress | None = None
        self._task: tuple[str, TaskID] | None = None
        self._training = _Training()

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self._clear()

    def say(self, text: str) -> None:
        """A sentence that stays."""
        self._clear()
        self.console.print(plain(text))

    def progress(self, what: str, done: int, total: int | None) -> None:
        """A line that is drawn over; another `what` begins a new one. Only terminals get it."""
        if not self.console.is_terminal:
            return
        if self._bar is None:
            self._bar = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                Elapsed(),
                Remaining(),
                console=self.console,
                transient=True,
            )
            self._bar.start()
        if self._task is None or self._task[0] != what:
            if self._task is not None:
                self._bar.remove_task(self._task[1])
            self._task = what, self._bar.add_task(what, total=total)
        self._bar.update(self._task[1], completed=done, total=total, description=what)

    def event(self, event: Event) -> None:
        """An event of the training process, as the live line or a sentence."""
        kind = event["type"]
        if kind == "training":
            self._training.begin(event)
            shared = "shared prefixes computed once" if event["share"] else "rows computed apart"
            self.say(
                f"training {event['parameters']:,} weights on {event['rows']:,} rows in "
                f"{event['steps']:,} steps ({event['dtype']}, {event['device']}, {shared})"
            )
            if event["reason"]:
                self.say(
                    f"sharing is off, as {event['reason']}: each row is computed by itself, "
                    "which takes longer"
                )
        elif kind == "step":
            self.progress(self._training.line(event), event["step"], self._training.steps)
        elif kind == "validation":
            self.say(f"step {event['step']:>5}   validation loss {event['loss']:.4f}")
        elif kind == "resumed":
            self.say(f"going on from the checkpoint of step {event['step']}")
        elif kind == "trained":
            early = ", stopped early" if event["stopped_early"] else ""
            self.say(f"trained; the best step was {event['best_step']}{early}")

    def checked(self, prepared: Prepared, report: Report) -> None:
        """The data's summary and what was found in it."""
        self._clear()
        for part in prepared.files:
            for note in part.notes:
                self.console.print(plain(note))
        self.console.print(summary(prepared, report))
        for finding in report.findings:
            if finding.severity == "note" and not self._verbose:
                continue
            rows = f" ({', '.join(finding.rows[:SHOWN_ROWS])})" if finding.rows else ""
            self.console.print(
                plain(finding.severity, COLOURS[finding.severity])
                + plain(f" {finding.message}{rows} ")
                + plain(finding.remedy, "dim")
            )

    def _clear(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._bar = self._task = None


def plain(text: str, style: str = "") -> Text:
    """Text from the data: no markup is read in it, and it does not steer the terminal."""
    return Text(text.translate(CONTROLS), style)


class _Training:
    """The live line: loss, tokens a second, memory."""

    def __init__(self) -> None:
        self.steps = 0
        self._loss: float | None = None
        self._began = time.monotonic()
        self._tokens = 0

    def begin(self, event: Event) -> None:
        self.steps, self._began, self._tokens = event["steps"], time.monotonic(), 0

    def line(self, event: Event) -> str:
        old = event["loss"] if self._loss is None else self._loss
        self._loss = 0.9 * old + 0.1 * event["loss"]
        self._tokens += event["tokens"]
        rate = self._tokens / max(time.monotonic() - self._began, 1e-9)
        return f"loss {self._loss:.4f}  {rate:,.0f} tokens/s  {event['memory_mb']:,} MB"


def summary(prepared: Prepared, report: Report) -> Table:
    """Rows, turns and tokens of the data."""
    table = Table(title="the data", title_justify="left", box=None, pad_edge=False)
    for column in ("", "rows", "", "median", "95 %", "largest", "mean"):
        table.add_column(column, justify="left" if not column else "right")
    counts = prepared.counts()
    names = ("used", "rejected", "duplicates", "train", "validation", "test")
    measures = [
        ("turns a row", report.turns),
        ("tokens a row", report.tokens),
        ("tokens an answer", report.answer_tokens),
    ]
    for place, name in enumerate(names):
        cells = [name, f"{counts[name]:,}"]
        if place < len(measures) and measures[place][1] is not None:
            label, found = measures[place]
            assert found is not None
            numbers = (found.median, found.p95, found.largest)
            cells += [label, *(f"{number:,}" for number in numbers), f"{found.mean:,.1f}"]
        table.add_row(*cells)
    return table


def arms(report: Mapping[str, Any]) -> Table:
    """The arms of a report.json side by side."""
    primary = report["primary"]
    table = Table(title=f"{primary} on unseen rows", title_justify="left", box=None, pad_edge=False)
    for column in ("arm", primary, "95 %", "rows", "tokens in", "tokens out", "p50 s"):
        table.add_column(column, justify="left" if column == "arm" else "right")
    for arm in report["arms"]:
        score = arm["scores"][primary]
        table.add_row(
            plain(arm["name"]),
            f"{score['value']:.3f}",
            f"{score['low']:.3f} to {score['high']:.3f}",
            f"{score['n']:,}",
            f"{arm['tokens_in']:,.0f}",
            f"{arm['tokens_out']:,.0f}",
            f"{arm['latency_p50']:.2f}",
        )
    return table


def heldout(found: Mapping[str, Any]) -> RenderableType:
    """What held-out text costs before training and after it: `pipeline.heldout.summary`."""
    if "reason" in found:
        return plain(f"not measured: {found['reason']}")
    chose = ", which also chose the checkpoint" if found["split"] == "validation" else ""
    title = f"{found['passages']:,} {found['split']} passages of held-out text{chose}"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in ("", "base", "tuned", "tuned - base", "95 %"):
        table.add_column(column, justify="right" if column else "left")
    bits, perplexity = found["bits_per_byte"], found["perplexity"]
    gap = bits["difference"]
    sides = ("base", "tuned")
    said = (
        ("", gap["reason"])
        if gap["value"] is None
        else (f"{gap['value']:+.4f}", f"{gap['low']:+.4f} to {gap['high']:+.4f}")
    )
    table.add_row("bits per byte", *(f"{bits[side]:.4f}" for side in sides), *said)
    table.add_row("perplexity a token", *(f"{perplexity[side]:.2f}" for side in sides))
    return table


def profile(found: Mapping[str, Any]) -> Table:
    """Where a training step's time goes: what `doctor --profile` found."""
    title = (
        f"a step of {found['rows']} rows, {found['distinct_tokens']:,} distinct tokens of "
        f"{found['tokens']:,}: {found['step']:.2f} s on {found['device']} in {found['dtype']}, "
        f"{found['memory_mb']:,} MB, {found['system']:.0%} of the processor time in the system"
    )
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in ("part", "seconds", "share"):
        table.add_column(column, justify="left" if column == "part" else "right")
    # Measured operation by operation, which takes longer: so the shares are told, not the sum.
    parts = {**found["parts"], "between operations": found["outside"]}
    whole = sum(parts.values())
    for name, seconds in sorted(parts.items(), key=lambda item: -item[1]):
        share = seconds / whole
        table.add_row(plain(name), f"{share * found['step']:.3f}", f"{share:.0%}")
    table.add_row(plain("its matrix products alone"), f"{found['products']:.3f}", "")
    table.caption = f"the step takes {found['ratio']:.1f} times as long as its products alone"
    table.caption_justify = "left"
    return table


def ending(report: Mapping[str, Any], folder: Path) -> list[RenderableType]:
    """How a run ended: arms, verdict and where to go on; or the first advice, with `--ask`."""
    if "arms" in report:
        tuned = report["model"]["tuned"]
        return [
            arms(report),
            "",
            plain(report["verdict"]["sentence"], "bold"),
            plain(f"report  {folder / 'report.html'}"),
            plain(f"model   {tuned}"),
            plain(f"try it  tunesmith chat {tuned}"),
        ]
    advice = report["advice"]
    return [
        plain(f"advice  {advice['approach']}"),
        *(plain(f"        {x}") for x in advice["reasons"]),
    ]


def runs(reports: Sequence[Mapping[str, Any]]) -> Table:
    """Finished runs side by side."""
    table = Table(box=None, pad_edge=False)
    for column in ("run", "base", "rows", "metric", "base", "tuned", "difference", "ship"):
        table.add_column(column, overflow="fold")
    for report in reports:
        scores = {arm["kind"]: arm["scores"][report["primary"]] for arm in report["arms"]}
        pair = next(
            (item for item in report["comparisons"] if (item["a"], item["b"]) == ("tuned", "base")),
            None,
        )
        table.add_row(
            plain(report["run"]),
            plain(report["model"]["base"]),
            f"{report['data']['train']:,}",
            report["primary"],
            *(
                f"{scores[name]['value']:.3f}" if name in scores else "-"
                for name in ("base", "tuned")
            ),
            f"{pair['difference']:+.3f} ({pair['low']:.3f} to {pair['high']:.3f})" if pair else "-",
            "yes" if report["verdict"]["ship"] else "no",
        )
    return table
