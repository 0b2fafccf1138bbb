from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tunesmith import recipe as recipes
from tunesmith.checks.report import Finding, Report, distribution
from tunesmith.pipeline import prepare
from tunesmith.recipe import Recipe
from tunesmith.screen import Terminal, arms, heldout, plain, profile, runs, summary

HOSTILE = "[red]x[/bold] [/] \\ \\\\\\ \x1b[2J\x07\r\x9b31m\x00 ünïcode \u202e [link=http://a]"
WIDTHS = (60, 200)


@pytest.fixture(params=WIDTHS)
def screen(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal of that width, verbose."""
    monkeypatch.setenv("COLUMNS", str(request.param))
    return Terminal(verbose=True)


def shown(renderable: Any, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, soft_wrap=True)
    console.print(renderable)
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def harmless(text: str) -> bool:
    return not {char for char in text if char < " " and char not in "\n\t"} | (
        set(text) & {chr(code) for code in range(127, 160)}
    )


def test_text_of_the_data_is_shown_as_it_is_and_steers_nothing() -> None:
    text = plain(HOSTILE).plain
    assert harmless(text)
    assert text.startswith("[red]x[/bold] [/] ")
    assert plain("a\n\tb").plain == "a\n\tb"


def test_hostile_data_is_told_without_being_obeyed(
    screen: Terminal, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = tmp_path / "[red]rows[bold].jsonl"
    good = [{"prompt": f"q{n} {HOSTILE}", "completion": f"a{n % 3}"} for n in range(40)]
    bad = [{HOSTILE: HOSTILE}, {"prompt": HOSTILE, "completion": 7}]
    name.write_text("".join(json.dumps(row) + "\n" for row in [*good, *bad]))
    asked = recipes.with_values(Recipe(), {"data.files": [str(name)]})
    prepared = prepare.gather(asked.data, None, seed=0)
    found = prepare.examine(prepared, asked.data, None)
    worse = Finding("form", "error", (HOSTILE,) * 9, HOSTILE, HOSTILE + "\\", 9)
    note = Finding("form", "note", (), HOSTILE, HOSTILE, 1)
    some = distribution(Counter({3: 2, 5: 1}))
    said = Report((worse, note, *found.findings), None, some, some, None, None)
    with screen:
        screen.checked(prepared, said)
        screen.say(HOSTILE)
        screen.progress(HOSTILE, 1, None)
    written = capsys.readouterr()
    assert written.out == ""
    assert harmless(written.err)
    assert "[red]rows[bold].jsonl" in written.err.replace("\n", "")
    assert "rejected" in written.err
    assert "2" in shown(summary(prepared, found), 60)


def test_a_training_is_told_from_its_first_event_to_its_last(
    screen: Terminal, capsys: pytest.CaptureFixture[str]
) -> None:
    training = {
        **{"type": "training", "parameters": 24576, "rows": 60, "steps": 2, "share": True},
        **{"dtype": "bfloat16", "device": "cpu", "reason": ""},
    }
    step = {"type": "step", "step": 1, "loss": 2.0, "tokens": 5, "memory_mb": 3}
    with screen:
        for event in (
            training,
            {"type": "resumed", "step": 0},
            {"type": "validation", "step": 0, "loss": 1.25},
            step,
            {**step, "step": 2},
            {"type": "checkpoint", "step": 2},
            {"type": "trained", "best_step": 2, "stopped_early": True},
        ):
            screen.event(event)
    told = " ".join(capsys.readouterr().err.split())
    assert "training 24,576 weights on 60 rows in 2 steps (bfloat16, cpu, shared prefixes" in told
    assert "going on from the checkpoint of step 0" in told
    assert "step 0 validation loss 1.2500" in told
    assert "the best step was 2, stopped early" in told


def test_a_base_that_cannot_share_is_told_with_its_reason(
    screen: Terminal, capsys: pytest.CaptureFixture[str]
) -> None:
    event = {
        **{"type": "training", "parameters": 1, "rows": 6, "steps": 2, "share": False},
        **{"dtype": "float32", "device": "cpu", "reason": "XForCausalLM has layers of conv"},
    }
    with screen:
        screen.event(event)
    told = " ".join(capsys.readouterr().err.split())
    assert "(float32, cpu, rows computed apart)" in told
    assert "sharing is off, as XForCausalLM has layers of conv: each row is computed by" in told


def test_a_real_terminal_gets_the_live_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    screen = Terminal()
    screen.console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with screen:
        screen.progress("reading [x]", 3, None)
        screen.progress("checking", 1, 4)
        screen.progress("checking", 4, 4)
        screen.say("done")
    written = screen.console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert "checking" in written
    assert "4/4" in written
    assert written.endswith("done\n")


def test_a_quiet_terminal_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Terminal(quiet=True) as screen:
        screen.say("hello")
        screen.progress("reading", 1, None)
    assert capsys.readouterr().err == ""


def report(name: str) -> dict[str, Any]:
    score = {"value": 0.5, "low": 0.25, "high": 0.75, "n": 1234}
    arm = {
        **{"name": name, "kind": "tuned", "scores": {"exact": score}},
        **{"tokens_in": 1234.5, "tokens_out": 2, "latency_p50": 0.125},
    }
    pair = {"a": "tuned", "b": "base", "difference": -0.1, "low": -0.2, "high": 0.0}
    return {
        **{"run": name, "primary": "exact", "arms": [arm], "comparisons": [pair]},
        **{"model": {"base": name}, "data": {"train": 1000}, "verdict": {"ship": True}},
    }


@pytest.mark.parametrize("width", WIDTHS)
def test_tables_of_reports_survive_hostile_names(width: int) -> None:
    both = shown(arms(report(HOSTILE)), width) + shown(runs([report(HOSTILE), report("b")]), width)
    assert harmless(both)
    assert "[red]x" in both
    wide = shown(runs([report("r1")]), 200)
    assert "-0.100 (-0.200 to 0.000)" in wide
    assert " yes" in wide
    assert "0.250 to 0.750" in shown(arms(report("r1")), 200)


def test_runs_without_a_base_arm_have_a_dash() -> None:
    alone = {**report("r1"), "comparisons": []}
    assert shown(runs([alone]), 200).split().count("-") == 2


def test_a_profile_tells_shares_of_the_step_as_it_is_without_measuring() -> None:
    found = {
        **{"rows": 8, "tokens": 1185, "distinct_tokens": 905, "step": 2.0, "device": "cpu"},
        **{"dtype": "bfloat16", "memory_mb": 1840, "system": 0.01, "products": 0.5, "ratio": 4.0},
        **{"parts": {"matrix products": 1.0, "copies and casts": 0.5}, "outside": 1.0},
    }
    told = shown(profile(found), 200)
    # 2.5 s while every operation is measured: 40 % of a step of 2 s are products.
    lines = [line.split() for line in told.splitlines()]
    assert ["matrix", "products", "0.800", "40%"] in lines
    assert ["copies", "and", "casts", "0.400", "20%"] in lines
    assert ["between", "operations", "0.800", "40%"] in lines
    assert "905 distinct tokens of 1,185: 2.00 s on cpu" in told
    assert "4.0 times as long as its products alone" in told


def test_held_out_text_is_told_with_what_chose_the_checkpoint() -> None:
    gap = {"value": -0.0837, "low": -0.0927, "high": -0.0775, "n": 16}
    found: dict[str, Any] = {
        **{"split": "test", "passages": 16, "bytes": 1, "tokens": 1},
        "bits_per_byte": {"base": 1.6747, "tuned": 1.591, "difference": gap},
        "perplexity": {"base": 49.31, "tuned": 40.58},
    }
    lines = shown(heldout(found), 200).splitlines()
    assert lines[0].strip() == "16 test passages of held-out text"
    assert lines[2].split()[-6:] == ["1.6747", "1.5910", "-0.0837", "-0.0927", "to", "-0.0775"]
    assert lines[3].split()[-2:] == ["49.31", "40.58"]
    alone = {"value": None, "reason": "one held-out text has no interval"}
    found |= {"split": "validation"}
    found["bits_per_byte"] |= {"difference": alone}
    told = shown(heldout(found), 200)
    assert "which also chose the checkpoint" in told
    assert alone["reason"] in told
    nothing = {"value": None, "reason": "no text was held out"}
    assert shown(heldout(nothing), 200).strip() == "not measured: no text was held out"
