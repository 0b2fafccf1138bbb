"""The adapters of a model: created, routed, saved and loaded in PEFT's format."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from tunesmith.errors import AdapterError, ModelError
from tunesmith.models.lora import LoRALinear, LoRASettings, LowRank, Routing

CARD = "tunesmith.json"
PREFIX = "base_model.model."


class Adapters:
    """All adapters of one model: wraps its linear layers once, then adds and removes by name."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.routing = model, Routing()
        self.settings: dict[str, LoRASettings] = {}

    def create(self, name: str, settings: LoRASettings, *, seed: int = 0) -> None:
        """A fresh adapter; the same seed starts it the same way."""
        generator = torch.Generator().manual_seed(seed)
        for path in self.targets(settings.targets):
            low = LowRank(self._linear(path), settings)
            low.start(generator)
            self._attach(path, name, low)
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

    def settle(self, name: str) -> None:
        """Keep the casts of an adapter that will not change any more."""
        layers = self.layers()
        for path, low in self.lows(name):
            low.settle(layers[path].weight)

    def parameters(self, name: str) -> list[nn.Parameter]:
        """The masters of one adapter, in the model's order."""
        return [weight for _, low in self.lows(name) for weight in low.parameters()]

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
            for key, weight in _saved(path, low).items():
                tensors[key] = weight.detach().cpu().contiguous()
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
            "use_dora": settings.dora,
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
            dora=bool(config.get("use_dora", False)),
            targets=tuple(config["target_modules"])
            if isinstance(config["target_modules"], list)
            else str(config["target_modules"]),
        )
        tensors = load_file(folder / "adapter_model.safetensors")
        try:
            paths = self.targets(settings.targets)
        except ModelError as error:
            raise AdapterError(error.found, expected=error.expected) from None
        lows = {path: LowRank(self._linear(path), settings) for path in paths}
        masters = {
            key: weight for path in paths for key, weight in _saved(path, lows[path]).items()
        }
        _check(tensors, masters, folder)
        for key, weight in masters.items():
            with torch.no_grad():
                weight.copy_(tensors[key])
        self._detach(name)
        for path, low in lows.items():
            self._attach(path, name, low)
        self.settings[name] = settings

    def _detach(self, name: str) -> None:
        for layer in self.layers().values():
            if name in layer.adapters:
                del layer.adapters[name]

    def _linear(self, path: str) -> nn.Linear:
        layer = self.model.get_submodule(path)
        linear = layer.layer if isinstance(layer, LoRALinear) else layer
        assert isinstance(linear, nn.Linear)
        return linear

    def _attach(self, path: str, name: str, low: LowRank) -> None:
        layer = self.model.get_submodule(path)
        if isinstance(layer, nn.Linear):
            layer.requires_grad_(False)
            layer = LoRALinear(layer, self.routing)
            parent, _, leaf = path.rpartition(".")
            setattr(self.model.get_submodule(parent), leaf, layer)
        assert isinstance(layer, LoRALinear)
        low.train(self.model.training)
        layer.adapters[name] = low


def _saved(path: str, low: LowRank) -> dict[str, nn.Parameter]:
    """The masters of a layer by their names in PEFT's file."""
    named = {f"{PREFIX}{path}.lora_A.weight": low.a, f"{PREFIX}{path}.lora_B.weight": low.b}
    if low.lengths is not None:
        named[f"{PREFIX}{path}.lora_magnitude_vector"] = low.lengths
    return named


def read_config(folder: Path) -> dict[str, Any]:
    """adapter_config.json of a folder, refused where it asks for more than LoRA."""
    path = folder / "adapter_config.json"
    if not path.is_file():
        raise AdapterError(f"{folder} has no adapter_config.json", expected="a PEFT adapter")
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    odd = [
        key
        for key in (
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
            expected="LoRA, rsLoRA or DoRA on linear layers, without bias or saved modules",
        )
    return config


def read_card(folder: Path) -> dict[str, Any]:
    """What tunesmith wrote beside an adapter; empty where another tool made it."""
    path = folder / CARD
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _ends(path: str, name: str) -> bool:
    """Whether a layer is meant by a name: its path, or the last parts of it."""
    return f".{path}".endswith(f".{name}")


def _check(tensors: Mapping[str, Tensor], masters: Mapping[str, Tensor], folder: Path) -> None:
    """Refuse a file that has other tensors than the adapter, other shapes, or nothing in them."""
    odd = sorted(set(tensors) ^ set(masters))
    if odd:
        raise AdapterError(
            f"the adapter in {folder} does not fit: {len(odd)} tensors too many or missing, "
            f"the first {odd[0]}",
            expected=f"the {len(masters)} tensors of its kind on this model",
        )
    for key, tensor in tensors.items():
        if tensor.shape != masters[key].shape:
            raise AdapterError(
                f"{key.removeprefix(PREFIX)} in {folder} has the shape {tuple(tensor.shape)}",
                expected=f"{tuple(masters[key].shape)}",
            )
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
