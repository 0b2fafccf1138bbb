from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tunesmith.errors import ModelError
from tunesmith.models.load import LoadedModel, load
from tunesmith.models.probe import by_rows, check_layers, unshared


@pytest.fixture
def model(tiny: Callable[..., Path]) -> LoadedModel:
    """A model that shares, to be spoilt."""
    return load(tiny(), dtype="float32")


def spoil(model: LoadedModel, change: Callable[[Tensor], Tensor]) -> None:
    """Change what the first layer gives (n, L, width)."""

    def hook(_module: nn.Module, _inputs: Any, out: Any) -> Any:
        return change(out) if isinstance(out, Tensor) else (change(out[0]), *out[1:])

    model.module.model.layers[0].register_forward_hook(hook)


def later(x: Tensor) -> Tensor:
    """Each token with a little of the one after it."""
    return x + 1e-4 * torch.roll(x, -1, 1)


def test_a_model_that_shares_has_nothing_against_it(model: LoadedModel) -> None:
    assert unshared(model) is None
    assert model.shares
    assert model.why == ""


def test_rows_are_padded_and_go_on_from_what_is_kept(model: LoadedModel) -> None:
    rows = by_rows(model, "it is asked for")
    assert (rows.padded, rows.cached, rows.why) == (True, True, "it is asked for")
    assert model.config._attn_implementation == "sdpa"


def test_rows_that_feel_each_other_are_computed_one_at_a_time(model: LoadedModel) -> None:
    spoil(model, lambda x: x + x.mean(0, keepdim=True) if len(x) > 1 else x)
    rows = by_rows(model, "it is asked for")
    assert (rows.padded, rows.cached) == (False, True)


def test_a_row_that_cannot_go_on_is_read_again(model: LoadedModel) -> None:
    """What is kept of a row is of no use to a model that looks at the whole of it."""
    spoil(model, lambda x: x + x.cumsum(1))
    rows = by_rows(model, "it is asked for")
    assert (rows.padded, rows.cached) == (True, False)


def test_a_token_that_sees_the_next_one_is_found_however_little(model: LoadedModel) -> None:
    """Far below what logits would show, and the row alone does the same."""
    spoil(model, later)
    with pytest.raises(ModelError, match=r"comes after it.*and sharing is no way out: why"):
        by_rows(model, "why")


def test_trap_18_a_layer_that_is_never_called_is_refused(model: LoadedModel) -> None:
    """Its weight is used beside it; an adapter would change nothing."""
    layer = model.module.model.layers[1].mlp
    down = layer.down_proj

    def forward(x: Tensor) -> Tensor:
        return (layer.act_fn(layer.gate_proj(x)) * layer.up_proj(x)) @ down.weight.T

    layer.forward = forward
    with pytest.raises(ModelError, match=r"1 linear layers .* model\.layers\.1\.mlp\.down_proj"):
        check_layers(model)
    assert not down.weight.requires_grad


def test_a_layer_that_no_token_was_sent_to_is_no_such_layer(model: LoadedModel) -> None:
    model.module.model.layers[1].expert = nn.Linear(4, 4).requires_grad_(requires_grad=False)
    check_layers(model)
