from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from tunesmith.errors import EngineError
from tunesmith.evaluate.evaluation import Measured, Sample
from tunesmith.evaluate.statistics import Interval
from tunesmith.pipeline import measure
from tunesmith.serve import engines

Check = Callable[..., measure.Parity]


@pytest.fixture(scope="module")
def check(made: Any, tmp_path_factory: pytest.TempPathFactory) -> Generator[Check]:
    """check_parity of the run's adapter, or of one with hardly any effect, by a changed record."""
    folder, run = made.folder, made.run
    scratch = tmp_path_factory.mktemp("parity")
    weak = scratch / "weak"
    shutil.copytree(folder.adapter, weak)
    weights = load_file(weak / "adapter_model.safetensors")
    faint = {name: value * 1e-9 if "lora_B" in name else value for name, value in weights.items()}
    save_file(faint, weak / "adapter_model.safetensors")
    spec = engines.EngineSpec(
        run.model.folder,
        run.model.name,
        adapters={"tuned": folder.adapter, "weak": weak},
        dtype=run.recipe.model.dtype,
    )
    rows = run.rows("validation")
    with asyncio.Runner() as runner:
        engine = runner.run(engines.start(spec, log=scratch / "engine.log"))

        def judge(
            change: Callable[[dict[str, Any]], Any] = lambda _: None,
            *,
            name: str = "tuned",
        ) -> measure.Parity:
            said = folder.read_json("parity.json")
            if name == "weak":
                for item in said["rows"]:
                    row = rows[item["row"]]
                    scored = runner.run(engine.chat().score(row.prompt, row.answer, row.tools))
                    item["logprobs"] = list(scored.logprobs)
            change(said)
            recorded = scratch / "parity.json"
            recorded.write_text(json.dumps(said))
            return runner.run(measure.check_parity(engine, name, recorded, rows))

        yield judge
        runner.run(engine.stop())


def test_trap_01_served_is_trained(check: Check, made: Any) -> None:
    found = check()
    assert found.rows == 8
    assert found.tokens == sum(len(r["ids"]) for r in made.folder.read_json("parity.json")["rows"])
    assert found.mean <= found.largest
    assert made.report["parity"]["rows"] == 8


def test_other_ids_than_the_trainers_are_refused(check: Check) -> None:
    with pytest.raises(EngineError, match=r"rows\.jsonl:\d+ as other tokens.*equal ids"):
        check(lambda said: said["rows"][3]["ids"].append(7))
    with pytest.raises(EngineError, match="as other tokens"):
        check(lambda said: said["rows"][3]["logprobs"].pop())


def test_other_log_probabilities_than_the_trainers_are_refused(check: Check) -> None:
    def lower(said: dict[str, Any]) -> None:
        said["rows"][0]["logprobs"][0] -= 1.0

    with pytest.raises(EngineError, match=r"differ by .* at most.*not registered"):
        check(lower)


def test_trap_18_an_adapter_that_answers_as_the_base_does_is_refused(check: Check) -> None:
    with pytest.raises(EngineError, match="answers as the base does"):
        check(name="weak")


def sample(number: int, seconds: float) -> Sample:
    return Sample(
        id=f"rows.jsonl:{number}",
        prompt="say",
        reference="one",
        output="one",
        scores={"exact": 1.0},
        tokens_in=10 * number,
        tokens_out=2,
        seconds=seconds,
        finish_reason="stop",
        cluster="c",
    )


def test_an_arm_tells_means_and_latencies_and_its_variants() -> None:
    samples = tuple(sample(n, seconds=n / 10) for n in range(1, 21))
    measured = Measured("prompt", "prompt", samples, {"exact": Interval(1.0, 0.8, 1.0, 20)})
    entry = measure.arm_entry(measured, {"variants": [{"name": "3 nearest", "validation": 0.5}]})
    assert entry["tokens_in"] == 105
    assert entry["tokens_out"] == 2
    assert (entry["latency_p50"], entry["latency_p95"]) == (1.1, 2.0)
    assert entry["scores"] == {"exact": {"value": 1.0, "low": 0.8, "high": 1.0, "n": 20}}
    assert entry["usd_per_1000"]["value"] is None
    assert entry["variants"] == [{"name": "3 nearest", "validation": 0.5}]
    assert "variants" not in measure.arm_entry(measured)


def test_a_sample_has_the_keys_of_the_contract() -> None:
    assert set(measure.sample_row(sample(1, 0.1))) == {
        *("id", "prompt", "reference", "output", "scores"),
        *("tokens_in", "tokens_out", "seconds", "finish_reason"),
    }


def test_graders_come_from_the_training_answers_or_by_name(made: Any, tmp_path: Path) -> None:
    rows = made.run.rows("train")
    assert measure.pick_graders(rows, ()).primary == "exact"
    named = tmp_path / "mine.py"
    named.write_text("def short(output, reference):\n    return float(len(output) < 9)\n")
    assert measure.pick_graders(rows, (f"{named}:short",)).primary == "short"


def test_countings_that_go_on_at_once_are_told_as_one() -> None:
    told: list[tuple[str, int, int]] = []
    tell = measure.as_one(lambda *said: told.append(said), "both")
    for said in (("base", 1, 4), ("prompts", 1, 10), ("base", 2, 4), ("prompts", 10, 10)):
        tell(*said)
    assert told == [("both", 1, 4), ("both", 2, 14), ("both", 3, 14), ("both", 12, 14)]


def test_what_goes_on_meanwhile_ends_with_the_block() -> None:
    ended: list[str] = []

    async def work() -> str:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("work")
        return "never"

    async def block() -> None:
        async with measure.meanwhile(work()):
            await asyncio.sleep(0)
            raise EngineError("the block failed", expected="that the work does not go on")

    with pytest.raises(EngineError):
        asyncio.run(block())
    assert ended == ["work"]
