"""The engine without a model, for the tests of this room."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

FAKE = Path(__file__).parent / "fake_engine.py"


@pytest.fixture(scope="session")
def fake() -> ModuleType:
    """fake_engine.py as a module."""
    spec = importlib.util.spec_from_file_location("fake_engine", FAKE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fake_engine"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def command() -> tuple[str, ...]:
    """What runs it as an engine process."""
    return (sys.executable, str(FAKE))
