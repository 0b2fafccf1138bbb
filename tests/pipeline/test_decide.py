from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Generator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tunesmith import recipe as recipes
from tunesmith.chat import Message
from tunesmith.data.examples import Conversation, Source
from tunesmith.evaluate.evaluation import Measured, Sample
from tunesmith.evaluate.statistics import Interval
from tunesmith.graders.choose import choose
from tunesmith.pipeline import decide
from tunesmith.pipeline.folder import RunFolder
from tunesmith.pipeline.measure import Bench
from tunesmith.recipe import Recipe


@dataclass
class Judging:
    """A judge's server: what it was sent, and what it answers to the two answers."""

    url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    status: int = 200

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        text = body["messages"][-1]["content"]
        first = text.partition("<answer-1>\n")[2].partition("\n</answer-1>")[0]
        said = "1" if "tuned" in first else "2"
        message = {"role": "assistant", "content": json.dumps({"better": said})}
        return {
            "id": "1", "object": "chat.completion", "created": 0, "model": body["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10},
        }  # fmt: skip


@pytest.fixture
def server() -> Generator[Judging]:
    judging = Judging()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            judging.asked.append(body)
            judging.keys.append(self.headers["authorization"])
            said = json.dumps(judging.answer(body)).encode()
            self.send_response(judging.status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, format: str, *args: Any) -> None:
            del format, args

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, daemon=True)
        thread.start()
        judging.url = f"http://127.0.0.1:{listening.server_address[1]}/v1"
        yield judging
        listening.shutdown()
        thread.join()


def measured(name: str, right: int, rows: int = 12) -> Measured:
    samples = tuple(
        Sample(f"t:{i}", f"q{i}", "yes", f"{name} {i}", {"exact": float(i < right)}, 10, 2, 0.5,
               "stop", str(i))
        for i in range(rows)
    )  # fmt: skip
    share = right / rows
    scores = {"exact": Interval(share, share - 0.1, share + 0.1, rows)}
    return Measured(name, name, samples, scores)  # type: ignore[arg-type]


ARMS = {name: measured(name, n) for name, n in
        (("base", 2), ("classical", 4), ("prompt", 6), ("tuned", 10))}  # fmt: skip
ROWS = [Conversation((Message("user", f"q{i}"), Message("assistant", "yes")), Source("t", i))
        for i in range(12)]  # fmt: skip


def beside(recipe: Recipe, folder: Path, screen: Any, arms: dict[str, Measured] = ARMS) -> Any:
    chosen = choose(["yes", "no"] * 20, with_tools=False)
    bench = Bench(None, None, ROWS, chosen, 8, 0, lambda *_: None)  # type: ignore[arg-type]
    return asyncio.run(
        decide.beside(bench, [], arms, ROWS, recipe, RunFolder(folder), screen, rows_at_once=64)
    )


def test_tuned_is_judged_against_the_base_and_the_best_other_arm(
    server: Judging, tmp_path: Path, screen: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGES_KEY", "sesame")
    wanted = {"base_url": server.url, "model": "large", "key_env": "JUDGES_KEY", "rows": 5,
              "rubric": "Names count."}  # fmt: skip
    found = beside(recipes.parse({"judge": wanted}), tmp_path, screen).whole["judge"]
    assert (found["model"], found["rubric"]) == ("large", "Names count.")
    assert [(pair["a"], pair["b"]) for pair in found["pairs"]] == [
        ("tuned", "base"), ("tuned", "prompt"),
    ]  # fmt: skip
    assert [(pair["wins"], pair["rows"], pair["invalid"]) for pair in found["pairs"]] == [
        (5, 5, 0), (5, 5, 0),
    ]  # fmt: skip
    assert len(server.asked) == 2 * 2 * 5
    assert set(server.keys) == {"Bearer sesame"}
    assert all(b["messages"][0]["content"].startswith("Names count.") for b in server.asked)
    lines = RunFolder(tmp_path).read_lines("judgements.jsonl")
    assert len(lines) == 10
    assert {line["outcome"] for line in lines} == {"a"}
    assert set(lines[0]) == {"a", "b", "id", "forward", "backward", "outcome", "asked"}


def test_a_judge_that_breaks_off_costs_its_judgements_only(
    server: Judging, tmp_path: Path, screen: Any
) -> None:
    server.status = 400
    wanted = recipes.parse({"judge": {"base_url": server.url, "model": "large"}})
    found = beside(wanted, tmp_path, screen).whole["judge"]
    assert found["value"] is None
    assert "the judge broke off" in found["reason"]
    assert any("the judge broke off" in text for text in screen.said)


def test_without_a_judge_or_a_goal_there_are_reasons(tmp_path: Path, screen: Any) -> None:
    found = beside(Recipe(), tmp_path, screen).whole
    assert {name: part["value"] for name, part in found.items()} == {"judge": None, "goal": None}
    assert not (tmp_path / "judgements.jsonl").exists()


def test_opponents_are_the_base_and_the_best_of_the_others() -> None:
    assert [arm.arm for arm in decide.opponents(ARMS, "exact")] == ["base", "prompt"]
    assert decide.opponents({"base": ARMS["base"]}, "exact") == []
    pair = {name: ARMS[name] for name in ("base", "tuned")}
    assert [arm.arm for arm in decide.opponents(pair, "exact")] == ["base"]


def test_each_arm_is_told_whether_it_reaches_the_goal(tmp_path: Path, screen: Any) -> None:
    wanted = recipes.with_values(Recipe(), {"evaluate.goal": 0.5})
    assert beside(wanted, tmp_path, screen).whole["goal"] == {
        "metric": "exact",
        "goal": 0.5,
        "arms": {"base": "not reached", "classical": "not reached", "prompt": "may be chance",
                 "tuned": "reached"},
    }  # fmt: skip


def test_figures_of_each_arm_join_the_report(tmp_path: Path, screen: Any) -> None:
    found = beside(Recipe(), tmp_path, screen)
    joined = found.joined({"arms": [{"name": name} for name in ARMS], "primary": "exact"})
    assert joined["primary"] == "exact"
    tuned = joined["arms"][-1]
    assert tuned["practical"]["valid_format"]["value"] == 0.0
    assert tuned["practical"]["tokens_saved"]["value"] == 0.0
    assert tuned["latency"]["rows_at_once"] == 12
    assert tuned["latency"]["alone"]["value"] is None
    assert decide.Beside().joined({"arms": []}) == {"arms": []}


def test_a_run_times_base_and_tuned_with_one_row_at_a_time(made: Any) -> None:
    arms = {arm["name"]: arm for arm in made.report["arms"]}
    for name in ("base", "tuned"):
        alone = arms[name]["latency"]["alone"]
        assert alone["n"] == decide.ALONE_ROWS
        assert 0 < alone["fastest"] <= alone["p50"] <= alone["slowest"]
    assert arms["classical"]["latency"]["alone"]["value"] is None
    assert arms["tuned"]["latency"]["rows_at_once"] == min(64, made.report["data"]["test"])
    assert set(arms["tuned"]["practical"]) == set(arms["base"]["practical"])
    assert made.report["judge"]["value"] is made.report["goal"]["value"] is None


def test_arms_that_are_left_out_are_missed_nowhere(tmp_path: Path, screen: Any) -> None:
    only = {"tuned": replace(ARMS["tuned"])}
    found = beside(Recipe(), tmp_path, screen, only)
    assert found.arms["tuned"]["practical"]["edits_saved"]["value"] is None
    assert found.arms["tuned"]["practical"]["tokens_saved"]["value"] is None
