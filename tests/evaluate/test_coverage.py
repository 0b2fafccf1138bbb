from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

PATH = Path(__file__).parents[2] / "benchmarks" / "coverage.py"


@pytest.fixture(scope="module")
def simulation() -> ModuleType:
    spec = importlib.util.spec_from_file_location("coverage_of_intervals", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Its dataclasses look their module up by name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_intervals_cover_and_same_arms_are_not_told_apart(simulation: ModuleType) -> None:
    simulation.VALUES = (0.0, 0.02, 0.5, 0.9, 1.0)
    simulation.PAIRS = ((0.02, 0.0), (0.1, 0.05), (0.5, 0.5), (1.0, 0.9))
    cells = list(simulation.grid((40,), ("each row alone", "1 to 5 rows"), 120, seed=2))
    # 2 shapes of 4 kinds: 5 arms, and 4 pairs alike or not, one of which is of arms that are the
    # same and has 6 figures more; and families of two values.
    assert len(cells) == 2 * 4 * (5 + 2 * (4 + 6)) + 2 * 2
    assert [cell for cell in cells if not cell.held] == []
    found = simulation.summary(cells)
    assert found["covers"]["mean"] > 0.95
    for what, part in found.items():
        if what != "covers":
            assert part["mean"] <= part["limit"] + 0.01


def test_sizes_are_all_rows(simulation: ModuleType) -> None:
    for name in simulation.CLUSTERS:
        assert sum(simulation.sizes(40, name)) == 40


def test_simulated_scores_have_the_mean_they_are_given(simulation: ModuleType) -> None:
    draws = simulation.Draws(100, "pairs", 2000, 1)
    for kind in simulation.KINDS:
        for mean in (0.02, 0.3, 0.9):
            x = simulation.values(kind, mean, draws.normal())
            assert x.mean() == pytest.approx(mean, abs=0.005)
            assert 0 <= x.min() <= x.max() <= 1
