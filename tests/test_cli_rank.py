from __future__ import annotations

import json
from collections.abc import Iterable
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from tunesmith.cli import app
from tunesmith.cli_rank import page, sit
from tunesmith.errors import UsageError
from tunesmith.evaluate.ranking import Shown, in_force, preferred
from tunesmith.pipeline import rank
from tunesmith.pipeline.folder import RunFolder

SAID = {"tuned": "the right word", "base": "some other word", "prompt": "yet another"}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """What `rank` reads of a finished run: six rows, one of them with equal answers."""
    made = RunFolder(tmp_path / "run")
    made.write_json("environment.json", {"key": "abcdef0123456789"})
    made.write_json("report.json", {"run": "abcdef", "arms": [{"name": name} for name in SAID]})
    made.write("report.html", "")
    for arm, text in SAID.items():
        rows = [{"id": str(i), "prompt": f"say {i}", "output": text if i else "same"}
                for i in range(6)]  # fmt: skip
        made.write_lines(f"samples/{arm}.jsonl", rows)
    return made


def pressing(keys: Iterable[str], desk: rank.Desk, width: int = 120) -> str:
    """What was on the screen while the keys were pressed."""
    pressed = iter(keys)
    console = Console(file=StringIO(), width=width, force_terminal=False)
    sit(desk, console, lambda: next(pressed))
    return console.file.getvalue()  # type: ignore[attr-defined]


def best(desk: rank.Desk) -> list[str | None]:
    return [preferred(rating) for rating in desk.rated().values()]


def prefer(arm: str, desk: rank.Desk) -> list[str]:
    return [str(row.arms.index(arm) + 1) for row in desk.rows]


def test_what_a_rater_prefers_is_kept_without_names_on_the_screen(folder: RunFolder) -> None:
    desk = rank.open_desk(folder, ["tuned", "base"], "ann")
    shown = pressing([*prefer("tuned", desk)], desk)
    assert best(desk) == ["tuned"] * 5
    assert "all 5 rows" in shown
    assert "tuned" not in shown
    assert "base" not in shown
    places = {tuple(rating["arms"]) for rating in desk.rated().values()}
    assert places <= {("tuned", "base"), ("base", "tuned")}
    lines = folder.read_lines("ratings.jsonl")
    assert set(lines[0]) == {"at", "rater", "id", "arms", "choice"}


def test_it_goes_on_where_it_was_left(folder: RunFolder) -> None:
    desk = rank.open_desk(folder, ["tuned", "base"], "ann")
    assert "0 of 5 rated by ann" in pressing("1q", desk)
    again = rank.open_desk(folder, ["tuned", "base"], "ann")
    assert "1 of 5 rated" in pressing("ttttq", again)
    assert len(again.rated()) == 5
    other = rank.open_desk(folder, ["tuned", "base"], "ben")
    assert "0 of 5 rated by ben" in pressing("q", other)


def test_ties_skips_and_other_keys(folder: RunFolder) -> None:
    desk = rank.open_desk(folder, ["tuned", "base"], "ann")
    pressing(["T", "x", "3", "s", "\x1b[A", "q"], desk)
    assert best(desk) == ["tie", None]


def test_an_undone_rating_is_asked_again(folder: RunFolder) -> None:
    desk = rank.open_desk(folder, ["tuned", "base"], "ann")
    pressing(["u", "t", "t", "u", "s", "q"], desk)
    assert best(desk) == ["tie", None]
    assert list(desk.rated()) == [row.id for row in desk.rows[:2]]
    assert len(in_force(rank.ratings(folder))["ann"]) == 2


def test_an_interrupt_keeps_what_was_rated(folder: RunFolder) -> None:
    desk = rank.open_desk(folder, ["tuned", "base"], "ann")
    pressed = iter("t")

    def key() -> str:
        try:
            return next(pressed)
        except StopIteration:
            raise KeyboardInterrupt from None

    sit(desk, Console(file=StringIO()), key)
    assert best(desk) == ["tie"]


@pytest.mark.parametrize("width", [40, 60, 99, 100, 160])
def test_nothing_of_an_answer_is_cut_off(width: int) -> None:
    long = '{"key":"' + "x" * 300 + '","end":1}'
    row = Shown("1", "a prompt " * 40 + "ends", ("tuned", "base"), (long, "bad\x1b[2Jword " * 30))
    console = Console(file=StringIO(), width=width)
    console.print(page(row, 0, 1, "ann", width))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert shown.count("x") >= 300
    assert '"end":1}' in shown.replace("\n", "") or "ends" in shown
    assert "\x1b[2J" not in shown
    assert max(map(len, shown.splitlines())) <= width
    side_by_side = any("answer 1" in line and "answer 2" in line for line in shown.splitlines())
    assert side_by_side == (width >= 100)


def test_results_are_told_and_written_into_the_report(folder: RunFolder) -> None:
    for name in ("ann", "ben"):
        desk = rank.open_desk(folder, ["tuned", "base"], name)
        keys = prefer("tuned", desk)
        pressing([*keys[:-1], "t"], desk)
    row = desk.rows[0].id
    folder.write_lines(
        "judgements.jsonl",
        [{"a": "tuned", "b": "base", "id": r.id, "outcome": "a" if r.id != row else "invalid"}
         for r in desk.rows[:4]] + [{"a": "tuned", "b": "base", "id": desk.rows[4].id,
                                     "outcome": "tie"}],
    )  # fmt: skip
    [part] = rank.tell(folder)
    assert part["pairs"][0]["win_rate"]["value"] == pytest.approx(0.9)
    assert part["agreement"]["value"] == pytest.approx(1.0)
    assert (part["with_judge"]["value"], part["with_judge"]["n"]) == (pytest.approx(1.0), 4)
    assert folder.read_json("report.json")["people"] == [part]
    ended = CliRunner().invoke(app, ["rank", str(folder.path), "--results"])
    assert "tuned against base" in ended.stdout
    assert "0.90" in ended.stdout
    assert "ann 5, ben 5; 0 skipped" in ended.stdout
    told = CliRunner().invoke(app, ["rank", str(folder.path), "--json"])
    assert json.loads(told.stdout) == [json.loads(json.dumps(part))]


def test_ratings_of_other_arms_stand_apart(folder: RunFolder) -> None:
    pressing("ttttt", rank.open_desk(folder, ["tuned", "base"], "ann"))
    three = rank.open_desk(folder, ["tuned", "base", "prompt"], "ann")
    assert "answer 3" in pressing("13q", three)
    parts = {tuple(part["arms"]): part for part in rank.tell(folder)}
    assert set(parts) == {("base", "tuned"), ("base", "prompt", "tuned")}
    assert parts["base", "tuned"]["raters"] == {"ann": 5}
    assert parts["base", "prompt", "tuned"]["raters"] == {"ann": 2}


def test_without_a_terminal_nobody_is_asked(folder: RunFolder) -> None:
    ended = CliRunner().invoke(app, ["rank", str(folder.path)], input="tsq")
    assert isinstance(ended.exception, UsageError)
    assert "standard input is no terminal" in str(ended.exception)
    assert rank.ratings(folder) == []


def test_nobody_has_rated(folder: RunFolder) -> None:
    before = folder.read_json("report.json")
    ended = CliRunner().invoke(app, ["rank", str(folder.path), "--results"])
    assert "nobody has rated" in ended.stdout
    assert folder.read_json("report.json") == before


@pytest.mark.parametrize("arms", [["tuned"], ["tuned", "tuned"], ["tuned", "nope"]])
def test_arms_that_cannot_be_ranked_are_refused(folder: RunFolder, arms: list[str]) -> None:
    with pytest.raises(UsageError, match="cannot be ranked; expected two or more of tuned, base"):
        rank.open_desk(folder, arms, "ann")


def test_a_run_that_is_not_there_is_refused() -> None:
    with pytest.raises(UsageError, match="there is no finished run nowhere"):
        rank.find("nowhere")
