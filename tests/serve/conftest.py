"""The engine without a model, for the tests of this room."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from openai import AsyncOpenAI

Test = Callable[[AsyncOpenAI], Awaitable[None]]

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


@pytest.fixture
def served(fake: ModuleType, tiny: Callable[..., Path]) -> Callable[[Test], None]:
    """Runs a test against an engine app with a real sampler."""

    def run(test: Test) -> None:
        from tunesmith.models.generate import Sampler
        from tunesmith.models.load import load
        from tunesmith.serve.local_http import create_engine_app

        model = load(tiny())
        app = create_engine_app(model, Sampler(model, max_rows=8), name="base", key=fake.KEY)

        async def go() -> None:
            async with (
                fake.serving(app) as url,
                AsyncOpenAI(base_url=f"{url}/v1", api_key=fake.KEY, max_retries=0) as client,
            ):
                await test(client)

        asyncio.run(go())

    return run


@pytest.fixture(scope="session")
def strictly() -> Callable[[Any, Any], None]:
    """Checks an answer by the types of the openai package, with nothing beside them."""

    def check(kind: Any, answer: Any) -> None:
        raw = answer.to_dict(mode="json")
        assert kind.model_validate_json(json.dumps(raw), strict=True).to_dict(mode="json") == raw
        assert not answer.model_extra

    return check
