"""The commands as people type them: processes, exit codes, what stands on standard output."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from openai import OpenAI

from tunesmith import cli
from tunesmith.store import Store
from tunesmith.testing import tiny_model

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SCRIPT = [sys.executable, "-c", "from tunesmith.cli import main; main()"]
SETTINGS = (
    *("train.epochs=6", "train.learning_rate=1e-2", "train.patience=0", "train.save_every=5"),
    *("evaluate.arms=[base,tuned]", "forgetting.probe=false"),
)
STEPS = 90
UNEQUAL = {"at", "seconds", "memory_mb"}


@dataclass
class Place:
    """A home with a model and rows, and what was run in it."""

    folder: Path
    ends: dict[str, subprocess.CompletedProcess[str]] = field(default_factory=dict)
    orphans: list[int] = field(default_factory=list)
    reached: list[int] = field(default_factory=list)

    @property
    def run(self) -> Path:
        return self.folder / "broken"

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def report(self) -> dict[str, Any]:
        return json.loads((self.run / "report.json").read_text())

    @property
    def tuned(self) -> str:
        return self.report["model"]["tuned"]

    def started(self, *arguments: str) -> subprocess.Popen[str]:
        environment = {
            **os.environ,
            "TUNESMITH_HOME": str(self.home),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        return subprocess.Popen(
            [*SCRIPT, *arguments],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )

    def typed(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        process = self.started(*arguments)
        out, err = process.communicate(timeout=200)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def steps_of(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "events.jsonl").read_text().splitlines(keepends=True)
    events = [json.loads(line) for line in lines if line.endswith("\n")]
    return [event for event in events if event["type"] == "step"]


def wait_for_step(folder: Path, step: int, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 120
    while not ((folder / "events.jsonl").is_file() and len(steps_of(folder)) >= step):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.002)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("place")
    tiny_model(folder / "tiny", dtype="float32")
    rows = [{"prompt": f"say {n}", "completion": WORDS[n % 10]} for n in range(120)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Place(folder)


RUN = ("run", "rows.jsonl", "--model", "tiny", "--out", "broken", "--json", "--yes")
SET = tuple(part for setting in SETTINGS for part in ("--set", setting))


@pytest.fixture(scope="module")
def finished(place: Place) -> Place:
    """One run: stopped by Ctrl-C in its training, gone on with, killed, and gone on with."""
    attempts: Sequence[tuple[str, int, int]] = (
        ("interrupted", 7, signal.SIGINT),
        ("killed", 40, signal.SIGKILL),
    )
    for name, step, number in attempts:
        process = place.started(*RUN, *SET)
        wait_for_step(place.run, step, process)
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        place.ends[name] = subprocess.CompletedProcess(RUN, process.returncode, out, err)
        place.reached.append(len(steps_of(place.run)))
        _, alive = psutil.wait_procs(children, timeout=10)
        place.orphans += [child.pid for child in alive]
    place.ends["finished"] = place.typed(*RUN, *SET)
    return place


def test_ctrl_c_ends_with_130_and_says_how_to_go_on(finished: Place) -> None:
    ended = finished.ends["interrupted"]
    assert ended.returncode == 130
    assert ended.stdout == ""
    assert ended.stderr.strip().endswith("stopped; the same command goes on from here")


def test_a_killed_command_takes_the_training_process_with_it(finished: Place) -> None:
    assert finished.ends["killed"].returncode == -signal.SIGKILL
    assert finished.orphans == []
    assert 7 <= finished.reached[0] < finished.reached[1] < STEPS


def test_the_same_command_goes_on_to_one_json_value(finished: Place) -> None:
    ended = finished.ends["finished"]
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    assert json.loads(ended.stdout) == finished.report
    assert set(finished.report["timings"]) == {
        *("check", "forecast", "explore", "train", "curve", "probe", "compare"),
    }


def test_trap_21_resume_is_the_same_run(finished: Place) -> None:
    """Against an unbroken training by the broken run's recipe.yaml, in another folder."""
    ended = finished.typed("train", "broken/recipe.yaml", "--out", "whole", "--json")
    assert ended.returncode == 0, ended.stderr
    whole = finished.folder / "whole"
    key = json.loads((whole / "environment.json").read_text())["key"]
    assert json.loads(ended.stdout) == {"run": key[:12], "adapter": str(whole / "adapter")}
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        ours, theirs = ((path / "adapter" / name).read_bytes() for path in (finished.run, whole))
        assert ours == theirs, name
    logs = [
        [{k: v for k, v in step.items() if k not in UNEQUAL} for step in steps_of(path)]
        for path in (finished.run, whole)
    ]
    assert logs[0] == logs[1]
    assert [step["step"] for step in logs[0]] == list(range(1, STEPS + 1))


@pytest.fixture
def typed(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """A command in this process: its exit code, standard output and standard error."""
    monkeypatch.chdir(place.folder)
    monkeypatch.setenv("TUNESMITH_HOME", str(place.home))
    # Made when the module is read, for the stream of then.
    monkeypatch.setattr(cli.out, "_file", None)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tunesmith", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        written = capsys.readouterr()
        code = ended.value.code
        return (code if isinstance(code, int) else 0), written.out, written.err

    return run


Typed = Callable[..., tuple[int, str, str]]


def test_a_finished_run_is_shown_again_and_gated(typed: Typed, finished: Place) -> None:
    arguments = [part for part in RUN if part != "--json"]
    began = time.monotonic()
    code, out, err = typed(*arguments, *SET, "--gate")
    assert time.monotonic() - began < 5
    # Nothing is learnt in seconds from random weights.
    assert finished.report["verdict"]["ship"] is False
    assert code == 4
    assert finished.report["verdict"]["sentence"] in out
    assert f"tunesmith chat {finished.tuned}" in out
    assert "this run is finished" in " ".join(err.split())
    code, out, err = typed(*arguments, *SET, "--json", "--gate")
    assert (code, json.loads(out), err) == (4, finished.report, "")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ("run rows.jsonl --modle x", 2, "--model"),
        ("run rows.jsonl --set train.epoch=3", 2, "Did you mean train.epochs?"),
        ("run rows.jsonl --map prompt", 2, "NAME=COLUMN"),
        ("run rows.jsonl --limit x", 2, "valid integer"),
        ("run", 2, "Missing argument"),
        ("run nowhere.jsonl --model tiny", 3, "nowhere.jsonl cannot be read"),
        ("run bad.jsonl --model tiny", 3, "rows are bad"),
        ("run rows.jsonl --model nobody", 1, "there is no model 'nobody'"),
        ("train nowhere.yaml", 2, "cannot be read"),
        ("compare nothing", 2, "there is no finished run nothing"),
        ("models show nobody", 1, "there is no model 'nobody'"),
        ("models remove nobody", 2, "there is no tuned model nobody"),
        ("chat nobody --once hi", 1, "there is no model 'nobody'"),
    ],
)
def test_mistakes_have_their_exit_code_and_say_what_to_do(
    typed: Typed, place: Place, arguments: str, code: int, said: str
) -> None:
    rows = [{"prompt": f"q{n}", "completion": "a"} if n % 2 else {"q": n} for n in range(40)]
    (place.folder / "bad.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ended, out, err = typed(*arguments.split())
    assert ended == code
    assert said in " ".join(re.sub("[│╭╮╰╯─]", " ", err).split())
    assert "Traceback" not in err
    if arguments.startswith("run"):
        assert out == ""


def test_check_prints_one_json_value_when_it_accepts_and_when_it_refuses(
    typed: Typed, place: Place
) -> None:
    code, out, err = typed("check", "rows.jsonl", "--model", "tiny", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["data"]["used"] == 120
    (place.folder / "half.jsonl").write_text('{"prompt": "q", "completion": "a"}\n{"prompt": 1}\n')
    for name in ("half.jsonl", "nowhere.jsonl", "tiny/model.safetensors"):
        code, out, err = typed("check", name, "--model", "tiny", "--json")
        assert code == 3
        assert set(json.loads(out)) == {"data", "findings"}
        assert err.startswith("error DataError: ")
    code, out, err = typed("check", "rows.jsonl", "--model", "tiny")
    assert (code, out) == (0, "")
    assert "tokens an answer" in err


def test_evaluate_scores_the_runs_rows_as_the_run_did(typed: Typed, finished: Place) -> None:
    """Other process, other batches, the same rows: greedy answers depend on neither."""
    rows = "broken/data/test.jsonl"
    arms = ("--arm", "base", "--arm", finished.tuned)
    code, out, err = typed("evaluate", rows, "--model", "tiny", *arms, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert [(arm["name"], arm["kind"]) for arm in found["arms"]] == [
        ("base", "base"),
        (finished.tuned, "tuned"),
    ]
    for now, then in zip(found["arms"], finished.report["arms"], strict=True):
        assert now["scores"]["exact"] == then["scores"]["exact"]
        assert now["scores"]["logprob"]["value"] == pytest.approx(
            then["scores"]["logprob"]["value"], abs=0.02
        )
    assert [(pair["a"], pair["b"]) for pair in found["comparisons"]] == [("base", finished.tuned)]


def test_text_is_trained_on_and_measured_on_its_end(place: Place) -> None:
    words = " ".join(f"word{n % 13}" for n in range(90))
    text = "\n\n".join(f"Chapter {n * 7919}. {words} {n**5}" * 2 for n in range(40))
    (place.folder / "book.txt").write_text(text)
    settings = [*SET, "--set", "method.type=cpt", "--set", "train.epochs=1"]
    command = ["train", "book.txt", "--model", "tiny", "--out", "text", *settings]
    said = [place.typed(*command, "--json") for _ in range(2)]
    assert [ended.returncode for ended in said] == [0, 0], said[0].stderr
    first, again = (json.loads(ended.stdout) for ended in said)
    assert first == again
    assert Path(first["adapter"]).is_dir()
    bits = first["heldout"]["bits_per_byte"]
    assert first["heldout"]["split"] == "test"
    assert bits["difference"]["value"] == pytest.approx(bits["tuned"] - bits["base"])
    assert bits["difference"]["low"] <= bits["difference"]["high"] < 0
    shown = place.typed(*command)
    assert f"{bits['base']:.4f}  {bits['tuned']:.4f}" in shown.stdout
    for wrong, code in (
        (("train", "book.txt", "--model", "tiny"), 3),
        (("run", "book.txt", "--model", "tiny", "--set", "method.type=cpt"), 2),
    ):
        ended = place.typed(*wrong)
        assert ended.returncode == code
        assert ended.stdout == ""
        assert "method.type=cpt" in ended.stderr


def test_chat_answers_once_on_standard_output(typed: Typed, finished: Place) -> None:
    code, out, err = typed("chat", "--once", "say 3")
    assert code == 0
    # The newest tuned model, named beside the answer and not in it.
    assert finished.tuned in err
    assert out.endswith("\n")
    assert finished.tuned not in out


def test_doctor_measures_where_a_training_step_goes(place: Place) -> None:
    ended = place.typed("doctor", "--profile", "rows.jsonl", "--model", "tiny", "--json")
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert found["rows"] == 4
    assert found["step"] > found["products"] > 0
    assert place.typed("doctor", "--profile", "nowhere.jsonl", "--model", "tiny").returncode == 3


def test_runs_are_compared_by_folder(typed: Typed, finished: Place) -> None:
    code, out, _ = typed("compare", "broken", str(finished.run), "--json")
    assert code == 0
    assert json.loads(out) == [finished.report] * 2
    code, out, _ = typed("compare", "broken", "broken")
    assert code == 0
    assert out.count(finished.report["run"]) == 2
    assert out.count(" no") == 2


def test_models_are_listed_shown_and_forgotten(typed: Typed, finished: Place) -> None:
    with Store.at(finished.home) as store:
        model = store.model(finished.tuned)
        assert model is not None
        store.register_model(
            "ft:tiny:local:spare:1",
            base=model.base,
            base_hash=model.base_hash,
            base_folder=Path(model.base_folder),
            adapter_folder=finished.run / "adapter",
        )
    code, out, _ = typed("models", "list", "--json")
    listed = {row["name"]: row for row in json.loads(out)}
    assert code == 0
    assert listed[finished.tuned] == {
        **{"name": finished.tuned, "kind": "tuned", "here": True, "base": "tiny", "licence": ""},
    }
    assert listed["smollm2-135m-instruct-q4"]["here"] is False
    code, out, _ = typed("models", "show", finished.tuned, "--json")
    assert json.loads(out)["adapter_folder"] == str(finished.run / "adapter")
    assert json.loads(out)["engines"]["local"] == "serves it"
    assert "llama.cpp" in json.loads(out)["engines"]
    code, out, _ = typed("models", "show", "tiny")
    assert code == 0
    assert re.search(r"engine local +serves it", out)
    assert "weights_hash" in out
    assert typed("models", "remove", "ft:tiny:local:spare:1")[0] == 0
    code, out, _ = typed("models", "list")
    assert finished.tuned in out
    assert "spare" not in out
    assert (finished.run / "adapter").is_dir()


@pytest.fixture
def serving(finished: Place) -> Generator[tuple[subprocess.Popen[str], str]]:
    process = finished.started("serve", "--model", "tiny", "--port", "0")
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.fullmatch(r"serving at (http://127\.0\.0\.1:\d+/v1)\n", line)
    assert found, line
    yield process, found[1]
    if process.poll() is None:
        process.kill()
    process.communicate(timeout=30)


def test_the_openai_package_talks_to_base_and_tuned_model_and_sigterm_ends_all(
    serving: tuple[subprocess.Popen[str], str], finished: Place
) -> None:
    process, url = serving
    with OpenAI(base_url=url, api_key="any") as client:
        assert [model.id for model in client.models.list()] == ["tiny", finished.tuned]
        for name in ("tiny", finished.tuned):
            answer = client.chat.completions.create(
                model=name, messages=[{"role": "user", "content": "say 3"}], max_tokens=8
            )
            assert answer.model == name
            assert answer.usage is not None
            assert answer.usage.completion_tokens <= 8
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=30)
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []


def test_help_check_and_models_list_import_no_torch(place: Place) -> None:
    code = (
        "import sys\n"
        "from tunesmith import cli\n"
        "heavy = {'torch', 'transformers', 'peft', 'scipy', 'sklearn', 'openai', 'pyarrow'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
        "for typed in (['--help'], ['check', 'rows.jsonl', '--model', 'tiny', '--json'],\n"
        "              ['models', 'list']):\n"
        "    cli.app(typed, standalone_mode=False)\n"
        "print(sorted({'torch', 'transformers', 'peft'} & set(sys.modules)), file=sys.stderr)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=place.folder,
        env={**os.environ, "TUNESMITH_HOME": str(place.home)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stderr.split("\n")[:2] == ["[]", "[]"]


def test_costs_are_told_before_any_training(place: Place) -> None:
    common = ("cost", "rows.jsonl", "--model", "tiny", "--json")
    ended = place.typed(*common, "--set", "facts.usd_per_hour=0.36")
    assert ended.returncode == 0, ended.stderr
    costs = json.loads(ended.stdout)
    assert {way["place"] for way in costs["ways"]} == {"here", "rented", "hosted"}
    assert costs["ways"][0]["usd"]["value"] > 0
    ended = place.typed(*common, "--prices", "none.yaml")
    assert ended.returncode == 2
    assert "none.yaml cannot be read" in ended.stderr


def test_advice_asks_nothing_where_there_is_no_terminal(place: Place) -> None:
    told = ("advise", "rows.jsonl", "--model", "tiny", "--out", "asked")
    told += ("--set", "facts.knowledge_changes=weekly")
    ended = place.typed(*told)
    assert ended.returncode == 0, ended.stderr
    assert "You said: the knowledge changes weekly" in ended.stdout
    assert "Prices as compiled on" in ended.stdout
    said = json.loads(place.typed(*told, "--json").stdout)
    assert said["advice"]["facts"]
    assert said["verdict"]["value"] is None
    assert "ways" in said["cost"]
    assert not (place.folder / "asked" / "adapter").exists()
