"""Low-rank adapters (Hu et al. 2021, arXiv:2106.09685): PEFT's format, our own forward.

y = W x + s B A x, with s = alpha/r, or alpha/sqrt(r) for rsLoRA. W is frozen in the model's dtype;
A and B are float32 masters, cast to the activations' dtype for the product, so that small updates
are not lost and no activation is widened.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional

from tunesmith.errors import AdapterError, ModelError

CARD = "tunesmith.json"
PREFIX = "base_model.model."


@dataclass(frozen=True, slots=True)
class LoRASettings:
    """What an adapter is: rank r, alpha, scaling, dropout, and the layers it stands beside."""

    rank: int
    alpha: float = 32.0
    rslora: bool = False
    dropout: float = 0.0
    targets: tuple[str, ...] | str = "all-linear"

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


class LowRank(nn.Module):
    """One adapter of one layer: A (r, in) and B (out, r), float32."""

    def __init__(self, layer: nn.Linear, settings: LoRASettings) -> None:
        super().__init__()
        device = layer.weight.device
        dtype = torch.float64 if layer.weight.dtype == torch.float64 else torch.float32
        down, up = (settings.rank, layer.in_features), (layer.out_features, settings.rank)
        self.a = nn.Parameter(torch.empty(down, device=device, dtype=dtype))
        self.b = nn.Parameter(torch.zeros(up, device=device, dtype=dtype))
        self.scale, self.dropout = settings.scale, settings.dropout
        self._settled: tuple[Tensor, Tensor] | None = None

    def settle(self, dtype: torch.dtype) -> None:
        """Keep the casts for the product: the masters will not change any more."""
        with torch.no_grad():
            self._settled = self.a.to(dtype), (self.b * self.scale).to(dtype)

    def start(self, generator: torch.Generator) -> None:
        """A as PEFT starts it (Kaiming uniform), B zero: the adapter is silent at step 0."""
        bound = 1 / math.sqrt(self.a.shape[1])
        with torch.no_grad():
            drawn = torch.rand(self.a.shape, generator=generator, dtype=torch.float32)
            self.a.copy_((drawn * 2 - 1) * bound)
            self.b.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        x = functional.dropout(x, self.dropout, self.training)
        a, b = self.cast(x.dtype)
        return functional.linear(functional.linear(x, a), b)

    def cast(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """A and s B for the product."""
        return self._settled or (self.a.to(dtype), (self.b * self.scale).to(dtype))


class _Beside(torch.autograd.Function):
    """W x + b A x, and its gradient, each sum made in the product's own memory.

    Autograd's would make every term by itself and add it: three more passes over the output.
    """

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor
    ) -> Tensor:
        """x (1, T, in), weight (out, in), a (r, in), b (out, r) -> (1, T, out)."""
        out = functional.linear(x[0], weight, bias)
        inner = functional.linear(x[0], a)
        ctx.save_for_backward(x, inner, weight, a, b)
        return out.addmm_(inner, b.t()).unsqueeze(0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, Tensor, Tensor]:
        """Gradients of x, a and b."""
        x, inner, weight, a, b = ctx.saved_tensors
        grad = grads[0][0]
        narrow = grad @ b
        grad_x = (grad @ weight).addmm_(narrow, a)[None] if ctx.needs_input_grad[0] else None
        return grad_x, None, None, narrow.t() @ x[0], grad.t() @ inner


class LoRALinear(nn.Module):
    """A frozen linear layer with any number of adapters beside it."""

    def __init__(self, layer: nn.Linear, routing: Routing) -> None:
        super().__init__()
        self.layer, self.routing = layer, routing
        self.adapters = nn.ModuleDict()

    @property
    def weight(self) -> Tensor:
        """The frozen weight, for models that look at it."""
        return self.layer.weight

    def forward(self, x: Tensor) -> Tensor:
        """(1, T, in) -> (1, T, out)."""
        routing = self.routing
        name = routing.all
        if routing.spans is None and name is not None and name in self.adapters:
            low = self.adapters[name]
            assert isinstance(low, LowRank)
            if low.dropout and low.training:
                return self.layer(x) + low(x)
            beside = _Beside.apply(x, self.weight, self.layer.bias, *low.cast(x.dtype))
            return beside  # pyright: ignore[reportReturnType]
        out: Tensor = self.layer(x)
        if routing.spans is None:
            return out
        for name in {owner for _, _, owner in routing.spans if owner in self.adapters}:
            # Over the whole pass: a product's rounding may depend on how many rows it has.
            change = self.adapters[name](x)
            for start, end, owner in routing.spans:
                if owner == name:
                    out[:, start:end] += change[:, start:end]
        return out


class Adapters:
    """All adapters of one model: wraps its linear layers once, then adds and removes by name."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.routing = model, Routing()
        self.settings: dict[str, LoRASettings] = {}

    def create(self, name: str, settings: LoRASettings, *, seed: int = 0) -> None:
        """A fresh adapter; the same seed starts it the same way."""
        generator = torch.Generator().manual_seed(seed)
        for path in self.targets(settings.targets):
            low = self._attach(path, name, settings)
            low.start(generator)
        self.settings[name] = settings

    def remove(self, name: str) -> None:
        """Forget an adapter."""
        del self.settings[name]
        self._detach(name)

    def layers(self) -> dict[str, LoRALinear]:
        """The wrapped layers by their path in the model."""
        return {
            path: layer
            for path, layer in self.model.named_modules()
            if isinstance(layer, LoRALinear)
        }

    def lows(self, name: str) -> Iterator[tuple[str, LowRank]]:
        """The parts of one adapter by the path of their layer, in the model's order."""
        for path, layer in self.layers().items():
            if name in layer.adapters:
                low = layer.adapters[name]
                assert isinstance(low, LowRank)
                yield path, low

    def parameters(self, name: str) -> list[nn.Parameter]:
        """The masters of one adapter, in the model's order."""
        return [weight for _, low in self.lows(name) for weight in (low.a, low.b)]

    def targets(self, wanted: tuple[str, ...] | str) -> list[str]:
        """Paths of the linear layers that an adapter stands beside.

        Raises:
            ModelError: a name matches no linear layer.
        """
        head = self.model.get_output_embeddings()  # pyright: ignore[reportCallIssue]
        found = [
            path.removesuffix(".layer")
            for path, layer in self.model.named_modules()
            if isinstance(layer, nn.Linear) and layer is not head
        ]
        if not found:
            raise ModelError(
                f"{type(self.model).__name__} has no linear layers",
                expected="nn.Linear layers, which an adapter stands beside",
            )
        if isinstance(wanted, str):
            return found
        missing = [name for name in wanted if not any(_ends(path, name) for path in found)]
        if missing:
            names = sorted({path.rpartition(".")[2] for path in found})
            raise ModelError(
                f"an adapter is to stand beside {', '.join(missing)}",
                expected=f"layers that the model has: {', '.join(names)}",
            )
        return [path for path in found if any(_ends(path, name) for name in wanted)]

    def save(self, name: str, folder: Path, *, base: str, card: Mapping[str, Any]) -> None:
        """Write an adapter as PEFT does: adapter_model.safetensors and adapter_config.json.

        The file holds the float32 masters; tunesmith.json beside it names the weights that the
        adapter belongs to.
        """
        folder.mkdir(parents=True, exist_ok=True)
        settings = self.settings[name]
        tensors: dict[str, Tensor] = {}
        suffixes: set[str] = set()
        for path, low in self.lows(name):
            tensors[f"{PREFIX}{path}.lora_A.weight"] = low.a.detach().cpu().contiguous()
            tensors[f"{PREFIX}{path}.lora_B.weight"] = low.b.detach().cpu().contiguous()
            suffixes.add(path.rpartition(".")[2])
        # As bytes: what the disk refuses stays an OSError.
        content = save(tensors, metadata={"format": "pt"})
        (folder / "adapter_model.safetensors").write_bytes(content)
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "r": settings.rank,
            "lora_alpha": settings.alpha,
            "use_rslora": settings.rslora,
            "lora_dropout": settings.dropout,
            "target_modules": sorted(suffixes),
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
        }
        _write_json(folder / "adapter_config.json", config)
        _write_json(folder / CARD, card)

    def load(self, name: str, folder: Path, *, weights_hash: str) -> None:
        """Add an adapter from a folder in PEFT's format.

        Raises:
            AdapterError: it was trained on other weights, lacks tensors, holds unknown or empty
                ones, or is of a kind that this forward does not compute.
        """
        config = read_config(folder)
        belongs = read_card(folder).get("base_weights")
        if belongs is not None and belongs != weights_hash:
            raise AdapterError(
                f"the adapter in {folder} was trained on weights {str(belongs)[:12]}",
                expected=f"an adapter of {weights_hash[:12]}, the weights that are loaded",
                remedy="Serve it on its own base, or train it again on this one.",
            )
        settings = LoRASettings(
            rank=int(config["r"]),
            alpha=float(config["lora_alpha"]),
            rslora=bool(config.get("use_rslora", False)),
            targets=tuple(config["target_modules"])
            if isinstance(config["target_modules"], list)
            else str(config["target_modules"]),
        )
        tensors = load_file(folder / "adapter_model.safetensors")
        try:
            paths = self.targets(settings.targets)
        except ModelError as error:
            raise AdapterError(error.found, expected=error.expected) from None
        wanted = {f"{PREFIX}{path}.lora_{part}.weight" for path in paths for part in "AB"}
        if set(tensors) != wanted:
            odd = sorted(set(tensors) ^ wanted)
            raise AdapterError(
                f"the adapter in {folder} does not fit: {len(odd)} tensors too many or missing, "
                f"the first {odd[0]}",
                expected=f"{len(wanted)} tensors for {len(wanted) // 2} layers of this model",
            )
        _check(tensors, folder)
        self._detach(name)
        for path in paths:
            low = self._attach(path, name, settings)
            for part, weight in (("A", low.a), ("B", low.b)):
                tensor = tensors[f"{PREFIX}{path}.lora_{part}.weight"]
                if tensor.shape != weight.shape:
                    self._detach(name)
                    raise AdapterError(
                        f"lora_{part} of {path} in {folder} has the shape {tuple(tensor.shape)}",
                        expected=f"{tuple(weight.shape)}",
                    )
                with torch.no_grad():
                    weight.copy_(tensor)
        self.settings[name] = settings

    def _detach(self, name: str) -> None:
        for layer in self.layers().values():
            if name in layer.adapters:
                del layer.adapters[name]

    def _attach(self, path: str, name: str, settings: LoRASettings) -> LowRank:
        parent_path, _, leaf = path.rpartition(".")
        parent = self.model.get_submodule(parent_path)
        layer = getattr(parent, leaf)
        if isinstance(layer, nn.Linear):
            layer.requires_grad_(False)
            layer = LoRALinear(layer, self.routing)
            setattr(parent, leaf, layer)
        assert isinstance(layer, LoRALinear)
        low = LowRank(layer.layer, settings)
        low.train(self.model.training)
        layer.adapters[name] = low
        return low


def read_config(folder: Path) -> dict[str, Any]:
    """adapter_config.json of a folder, refused where it asks for more than LoRA."""
    path = folder / "adapter_config.json"
    if not path.is_file():
        raise AdapterError(f"{folder} has no adapter_config.json", expected="a PEFT adapter")
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    odd = [
        key
        for key in (
            "use_dora",
            "modules_to_save",
            "rank_pattern",
            "alpha_pattern",
            "alora_invocation_tokens",
        )
        if config.get(key)
    ]
    if config.get("bias", "none") != "none":
        odd.append("bias")
    if config.get("peft_type") != "LORA" or odd:
        raise AdapterError(
            f"the adapter in {folder} is {config.get('peft_type')} with {', '.join(odd) or 'nothing'}",
            expected="LoRA or rsLoRA on linear layers, without bias or saved modules",
        )
    return config


def read_card(folder: Path) -> dict[str, Any]:
    """What tunesmith wrote beside an adapter; empty where another tool made it."""
    path = folder / CARD
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _ends(path: str, name: str) -> bool:
    """Whether a layer is meant by a name: its path, or the last parts of it."""
    return f".{path}".endswith(f".{name}")


def _check(tensors: Mapping[str, Tensor], folder: Path) -> None:
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
        raise AdapterError(
            f"the adapter in {folder} has values that are not finite", expected="finite weights"
        )
    if not any(bool(tensor.any()) for key, tensor in tensors.items() if ".lora_B." in key):
        raise AdapterError(
            f"the adapter in {folder} is silent: every lora_B is zero",
            expected="a trained adapter",
        )


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
