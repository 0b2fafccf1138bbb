from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tunesmith.models.generate import ScoreRequest
from tunesmith.models.load import LoadedModel, load
from tunesmith.models.lora import Routing
from tunesmith.models.passes import Apart, Passes, Shared, passes, routed

PREFIX = tuple(range(40))


def asked(*rows: int) -> list[ScoreRequest]:
    """Prompts behind one prefix that differ in their first token and in their length."""
    return [ScoreRequest(PREFIX, (100 + n,) * (n + 1), (7, 8, 9)) for n in rows]


@pytest.fixture
def shared(tiny: Callable[..., Path]) -> LoadedModel:
    return load(tiny(), dtype="float32")


@pytest.fixture(params=["shared", "apart"])
def made(
    request: pytest.FixtureRequest, shared: LoadedModel, apart: Callable[[str], Path]
) -> Passes:
    if request.param == "apart":
        return passes(load(apart("lfm2"), dtype="float32"), 8)
    return passes(shared, 8)


def test_a_model_that_shares_has_shared_passes(
    shared: LoadedModel, apart: Callable[[str], Path]
) -> None:
    assert isinstance(passes(shared, 8), Shared)
    assert isinstance(passes(load(apart("bloom"), dtype="float32"), 8), Apart)


@torch.inference_mode()
def test_what_an_answer_is_told_from_is_what_rows_go_through_to_write_it(made: Passes) -> None:
    items = asked(0, 3, 9)
    scored = made.score(items)
    assert [len(hidden) for hidden in scored] == [3, 3, 3]
    made.reserve(3, 32)
    steps = [made.join(items), made.go_on([7, 7, 7]), made.go_on([8, 8, 8])]
    for place, hidden in enumerate(scored):
        written = torch.stack([step[place] for step in steps])
        torch.testing.assert_close(written, hidden, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_when_a_row_leaves_the_last_one_takes_its_place(made: Passes) -> None:
    made.reserve(3, 32)
    made.join(asked(0, 3, 9))
    made.leave(0)
    both = made.go_on([7, 7])
    made.leave(1)
    wanted = [hidden[1] for hidden in made.score(asked(9, 3))]
    torch.testing.assert_close(both, torch.stack(wanted), rtol=1e-4, atol=1e-5)
    late = made.join(asked(5))
    torch.testing.assert_close(late[0], made.score(asked(5))[0][0], rtol=1e-4, atol=1e-5)
    assert len(made.go_on([8, 7])) == 2


@torch.inference_mode()
def test_a_prefix_is_computed_once_for_each_adapter_until_it_is_forgotten(
    shared: LoadedModel,
) -> None:
    made = Shared(shared, 8)
    made.score(asked(0, 3))
    (kept,) = made.prefixes.values()
    made.score(asked(9))
    assert list(made.prefixes.values()) == [kept]
    made.score([replace(asked(0)[0], adapter="a")])
    assert list(made.prefixes) == [(None, PREFIX), ("a", PREFIX)]
    made.forget("a")
    assert list(made.prefixes) == [(None, PREFIX)]


def test_the_routing_is_as_it_was_after_a_pass_that_fails() -> None:
    routing = Routing(all="trained")

    def fails() -> None:
        with routed(routing, ((0, 3, "a"),)):
            assert routing.spans == ((0, 3, "a"),)
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError):
        fails()
    assert routing == Routing(all="trained")
