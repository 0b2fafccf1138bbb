"""The README says what is so: its tour runs, its references are the code's."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tunesmith.testing import tiny_model

ROOT = Path(__file__).parents[1]
QUICK = "--limit 80 --set train.epochs=1 --set evaluate.limit=6 --set evaluate.max_tokens=12"


@pytest.fixture(scope="module")
def tour() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tour", ROOT / "docs" / "tour.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_command_of_the_tour_runs_on_a_tiny_model(tour: ModuleType, tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "tiny")
    environment = {
        **os.environ,
        "TUNESMITH_HOME": str(tmp_path / "home"),
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    played = []
    for block in tour.blocks((ROOT / "README.md").read_text(encoding="utf-8")):
        tiny = [
            re.sub(r"^tunesmith (run|check|serve)", rf"\g<0> --model {model}", c) for c in block
        ]
        quick = [f"{c} {QUICK}" if c.startswith("tunesmith run") else c for c in tiny]
        played.append(tour.play(quick, environment))
    text = "".join(played)
    assert "report  " in text
    assert "serving at http://127.0.0.1:8765/v1" in text
    assert re.search(r"models: tiny, ft:tiny:local:run:[0-9a-f]{12}", text)


def test_the_tour_shows_output() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL):
        assert any(not line.startswith("$ ") for line in block.splitlines() if line)


def test_commands_and_recipe_pages_are_what_the_code_says() -> None:
    ran = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "reference.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout


@pytest.mark.parametrize(
    "page", [*sorted(ROOT.glob("docs/**/*.md")), ROOT / "README.md"], ids=lambda page: page.name
)
def test_links_inside_the_repository_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target
