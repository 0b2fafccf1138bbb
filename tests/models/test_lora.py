"""The layer against its equations written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tunesmith.models.lora import LoRALinear, LoRASettings, LowRank, Routing


def adapted(
    settings: LoRASettings, *, bias: bool, names: tuple[str, ...] = ("a",)
) -> tuple[LoRALinear, dict[str, LowRank]]:
    """A layer of 5 to 7 in float64 with adapters that are not silent."""
    torch.manual_seed(0)
    linear = nn.Linear(5, 7, bias=bias, dtype=torch.float64).requires_grad_(False)
    layer = LoRALinear(linear, Routing(all="a"))
    lows: dict[str, LowRank] = {}
    for name in names:
        low = lows[name] = LowRank(linear, settings)
        low.start(torch.Generator().manual_seed(len(lows)))
        nn.init.normal_(low.b)
        if low.lengths is not None:
            nn.init.uniform_(low.lengths, 0.5, 2.0)
        layer.adapters[name] = low
    return layer, lows


def written_out(layer: LoRALinear, low: LowRank, x: Tensor) -> Tensor:
    weight = layer.weight + low.scale * low.b @ low.a
    if low.lengths is not None:
        weight = weight * (low.lengths / weight.norm(dim=1).detach())[:, None]
    return functional.linear(x, weight, layer.layer.bias)


KINDS = {
    "lora": LoRASettings(3, 6.0),
    "rslora": LoRASettings(3, 6.0, rslora=True),
    "dora": LoRASettings(3, 6.0, dora=True),
}


@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("shape", [(1, 4), (4,)], ids=["a batch", "flattened by the model"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_adapted_layer_and_its_gradients_are_the_equation(
    kind: str, shape: tuple[int, ...], bias: bool
) -> None:
    """DoRA's norm has no gradient of its own: the written-out one is detached too."""
    layer, lows = adapted(KINDS[kind], bias=bias)
    low = lows["a"]
    x = torch.randn(*shape, 5, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(*shape, 7, dtype=torch.float64)
    asked = (x, *low.parameters())
    out, wanted = layer(x), written_out(layer, low, x)
    torch.testing.assert_close(out, wanted)
    found = torch.autograd.grad(out, asked, grad)
    torch.testing.assert_close(found, torch.autograd.grad(wanted, asked, grad))


def test_the_first_layers_input_needs_no_gradient() -> None:
    layer, lows = adapted(KINDS["lora"], bias=False)
    layer(torch.randn(1, 4, 5, dtype=torch.float64)).sum().backward()
    assert all(weight.grad is not None for weight in lows["a"].parameters())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("settled", [False, True], ids=["learning", "settled"])
def test_each_run_of_tokens_goes_through_its_own_adapter(kind: str, settled: bool) -> None:
    layer, lows = adapted(KINDS[kind], bias=True, names=("a", "b"))
    if settled:
        for low in lows.values():
            low.settle(layer.weight, layer.weight.dtype)
    x = torch.randn(1, 9, 5, dtype=torch.float64)
    layer.routing.spans = ((0, 2, "a"), (2, 5, "b"), (6, 8, "a"))
    with torch.no_grad():
        out = layer(x)
        base = layer.layer(x)
        by = {name: written_out(layer, low, x) for name, low in lows.items()}
    wanted = [by["a"][:, :2], by["b"][:, 2:5], base[:, 5:6], by["a"][:, 6:8], base[:, 8:]]
    torch.testing.assert_close(out, torch.cat(wanted, 1))


def test_a_settled_adapter_makes_no_cast() -> None:
    layer, lows = adapted(KINDS["dora"], bias=False)
    low = lows["a"]
    low.settle(layer.weight, layer.weight.dtype)
    kept = low.cast(torch.float64)
    with torch.no_grad():
        low.a.zero_()
    assert all(a is b for a, b in zip(kept, low.cast(torch.float64), strict=True))
