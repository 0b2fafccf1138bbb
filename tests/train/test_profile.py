"""Where a step's time goes: what is counted, and what the command prints."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tunesmith.train import profile as profiling
from tunesmith.train.profile import REST, _Timed
from tunesmith.train.spec import TrainSpec

Spec = Callable[..., TrainSpec]


def test_every_product_of_a_step_is_seen_forward_and_backward() -> None:
    weight = torch.randn(5, 4)
    x = torch.randn(3, 4, requires_grad=True)
    with _Timed(lambda: None) as timed:
        # 3 x 4 with 4 x 5; backward 3 x 5 with 5 x 4.
        torch.nn.functional.linear(x, weight).exp().sum().backward()
    shapes = sorted(tuple(layout[0] for layout in layouts) for _, layouts in timed.products)
    assert shapes == [((3, 4), (4, 5)), ((3, 5), (5, 4))]
    assert sum(timed.products.values()) == 2
    assert {"exp", "mm"} <= set(timed.seconds)


def test_a_profile_accounts_for_the_whole_step(
    spec_of: Spec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    told = spec_of(tmp_path, batch_rows=4)
    path = Path(told.out) / "spec.json"
    told.write(path)
    monkeypatch.setattr(sys, "argv", ["profile", str(path)])
    profiling.main()
    found = json.loads(capsys.readouterr().out)
    assert found["rows"] == 4
    assert 0 < found["distinct_tokens"] <= found["tokens"]
    assert set(found["parts"]) == {*profiling.HEADINGS, REST}
    assert all(seconds > 0 for name, seconds in found["parts"].items() if name != "fused attention")
    assert found["outside"] > 0
    assert found["ratio"] == pytest.approx(found["step"] / found["products"])
    assert found["ratio"] > 1
    assert 0 <= found["system"] < 1
    assert found["memory_mb"] > 50
