"""Low-rank adapters (Hu et al. 2021, arXiv:2106.09685): PEFT's format, our own forward.

y = W x + s B A x, with s = alpha/r, or alpha/sqrt(r) for rsLoRA. W is frozen in the model's dtype;
A and B are float32 masters, cast to the activations' dtype for the product, so that small updates
are not lost and no activation is widened.

DoRA (Liu et al. 2024, arXiv:2402.09353) learns the length m of each row of the weight apart from its
direction: y = m / |W + s B A| * (W + s B A) x, the norm without a gradient (section 4.3).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class LoRASettings:
    """What an adapter is: rank r, alpha, scaling, dropout, and the layers it stands beside."""

    rank: int
    alpha: float = 32.0
    rslora: bool = False
    dropout: float = 0.0
    targets: tuple[str, ...] | str = "all-linear"
    dora: bool = False
    modules_to_save: tuple[str, ...] = ()
    """Modules that are trained whole beside it, by the end of their path, as PEFT takes it."""

    @property
    def scale(self) -> float:
        """The factor s of the adapter's output."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


@dataclass(slots=True)
class Routing:
    """Which adapter each token of a forward pass goes through; one object for a whole model.

    `spans` are (start, end, adapter) over the token axis; None sends every token through `all`.
    """

    all: str | None = None
    spans: tuple[tuple[int, int, str], ...] | None = field(default=None)

    def of(self, held: nn.ModuleDict) -> dict[str, list[slice]]:
        """Where in the pass each of the adapters that are held is asked for."""
        places: dict[str, list[slice]] = {}
        for start, end, owner in self.spans or ():
            if owner in held:
                places.setdefault(owner, []).append(slice(start, end))
        return places


class ByAdapter(nn.ModuleDict):
    """Modules by the name of their adapter; unlike torch's own, names may have dots."""

    def __getitem__(self, name: str) -> nn.Module:
        return super().__getitem__(_undotted(name))

    def __setitem__(self, name: str, module: nn.Module) -> None:
        super().__setitem__(_undotted(name), module)

    def __delitem__(self, name: str) -> None:
        super().__delitem__(_undotted(name))

    def __contains__(self, name: str) -> bool:
        return super().__contains__(_undotted(name))


def _undotted(name: str) -> str:
    return name.replace(".", "\N{ONE DOT LEADER}")


class LowRank(nn.Module):
    """One adapter of one layer: A (r, in), B (out, r), and DoRA's lengths m (out,), in float32."""

    def __init__(self, layer: nn.Linear, settings: LoRASettings) -> None:
        super().__init__()
        device = layer.weight.device
        dtype = torch.float64 if layer.weight.dtype == torch.float64 else torch.float32
        down, up = (settings.rank, layer.in_features), (layer.out_features, settings.rank)
        self.a = nn.Parameter(torch.empty(down, device=device, dtype=dtype))
        self.b = nn.Parameter(torch.zeros(up, device=device, dtype=dtype))
        self.scale, self.dropout = settings.scale, settings.dropout
        self.lengths: nn.Parameter | None = None
        if settings.dora:
            with torch.no_grad():
                self._squares = layer.weight.to(dtype).square().sum(1)
            self.lengths = nn.Parameter(self._squares.sqrt())
        self._settled: tuple[Tensor, Tensor, Tensor | None] | None = None

    def settle(self, weight: Tensor, dtype: torch.dtype) -> None:
        """Keep what a product in `dtype` needs: the masters will not change any more."""
        with torch.no_grad():
            a, b = self.cast(dtype)
            self._settled = a, b, self._stretch(weight)

    def start(self, generator: torch.Generator) -> None:
        """A as PEFT starts it (Kaiming uniform), B zero: the adapter is silent at step 0."""
        bound = 1 / math.sqrt(self.a.shape[1])
        with torch.no_grad():
            drawn = torch.rand(self.a.shape, generator=generator, dtype=torch.float32)
            self.a.copy_((drawn * 2 - 1) * bound)
            self.b.zero_()

    def forward(self, x: Tensor, out: Tensor, layer: nn.Linear) -> Tensor:
        """What the adapter adds to the layer's output `out`: x (..., in) -> (..., out)."""
        x = functional.dropout(x, self.dropout, self.training)
        a, b = self.cast(x.dtype)
        change = functional.linear(functional.linear(x, a), b)
        if self.lengths is None:
            return change
        more = self._settled[2] if self._settled else self._stretch(layer.weight)
        assert more is not None
        # The bias is no part of what is stretched. Exactly nothing is added at step 0.
        bias: Tensor | None = getattr(layer, "bias", None)
        stretched = out if bias is None else out - bias
        return (stretched + change) * more.to(x.dtype) + change

    def cast(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """A and s B for the product."""
        if self._settled:
            return self._settled[:2]
        return self.a.to(dtype), (self.b * self.scale).to(dtype)

    def merged(self, weight: Tensor) -> Tensor:
        """The weight (out, in) that does alone what it and the adapter do, in float32 at least."""
        wide = weight.to(self.a.dtype)
        change = (self.b @ self.a) * self.scale
        more = self._stretch(wide)
        return wide + change if more is None else (wide + change) * (more + 1).unsqueeze(1)

    def _stretch(self, weight: Tensor) -> Tensor | None:
        """m / |W + s B A| - 1, row by row (out,); None without lengths of its own.

        |W + s B A|^2 = |W|^2 + 2 s B . (W A^T) + s^2 B (A A^T) . B, so that no weight is ever made:
        with B zero it is |W|^2 to the bit.
        """
        if self.lengths is None:
            return None
        with torch.no_grad():
            a, b = self.a, self.b * self.scale
            across = (weight @ a.to(weight.dtype).t()).to(b.dtype)
            squares = self._squares + (b * (2 * across + b @ (a @ a.t()))).sum(1)
        return self.lengths / squares.sqrt() - 1


class _Beside(torch.autograd.Function):
    """W x + b A x, and its gradient, each sum made in the product's own memory.

    Autograd's would make every term by itself and add it: three more passes over the output.
    """

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor
    ) -> Tensor:
        """x (..., in), weight (out, in), a (r, in), b (out, r) -> (..., out)."""
        flat = x.reshape(-1, x.shape[-1])
        inner = functional.linear(flat, a)
        ctx.save_for_backward(flat, inner, weight, a, b)
        ctx.shape = x.shape
        out = functional.linear(flat, weight, bias).addmm_(inner, b.t())
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, Tensor, Tensor]:
        """Gradients of x, a and b."""
        flat, inner, weight, a, b = ctx.saved_tensors
        grad = grads[0].reshape(len(flat), -1)
        narrow = grad @ b
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad @ weight).addmm_(narrow, a).view(ctx.shape)
        return grad_x, None, None, narrow.t() @ flat, grad.t() @ inner


class Whole(nn.Module):
    """A module of the base with a copy for each adapter that trains it whole (modules_to_save)."""

    def __init__(self, module: nn.Module, routing: Routing) -> None:
        super().__init__()
        self.module, self.routing = module, routing
        self.copies = ByAdapter()

    @property
    def weight(self) -> Tensor:
        """The frozen weight, for models that look at it."""
        return self.module.weight  # pyright: ignore[reportReturnType]

    def of(self, name: str | None) -> nn.Module:
        """What an adapter's tokens go through."""
        return self.copies[name] if name is not None and name in self.copies else self.module

    def forward(self, x: Tensor) -> Tensor:
        """(1, T, ...) -> (1, T, ...)."""
        routing = self.routing
        if routing.spans is None:
            return self.of(routing.all)(x)
        out: Tensor = self.module(x)
        for name, places in routing.of(self.copies).items():
            own = self.copies[name](x)
            for place in places:
                out[:, place] = own[:, place]
        return out


class LoRALinear(nn.Module):
    """A frozen linear layer with any number of adapters beside it."""

    def __init__(self, layer: nn.Linear, routing: Routing) -> None:
        super().__init__()
        self.layer, self.routing = layer, routing
        self.adapters = ByAdapter()

    @property
    def weight(self) -> Tensor:
        """The frozen weight, for models that look at it."""
        return self.layer.weight

    @property
    def bias(self) -> Tensor | None:
        """The frozen bias, for models that look at it."""
        return self.layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """(1, T, in) -> (1, T, out)."""
        routing = self.routing
        name = routing.all
        if routing.spans is None and name is not None and name in self.adapters:
            return self._through(name, x)
        out: Tensor = self.layer(x)
        for name, places in routing.of(self.adapters).items():
            # Over the whole pass: a product's rounding may depend on how many rows it has.
            change = self.adapters[name](x, out, self.layer)
            for place in places:
                out[:, place] += change[:, place]
        return out

    def _through(self, name: str, x: Tensor) -> Tensor:
        low = self.adapters[name]
        assert isinstance(low, LowRank)
        packed = not self.weight.is_floating_point()
        if packed or low.lengths is not None or (low.dropout and low.training):
            out = self.layer(x)
            return out + low(x, out, self.layer)
        beside = _Beside.apply(x, self.weight, self.layer.bias, *low.cast(x.dtype))
        return beside  # pyright: ignore[reportReturnType]
