"""The adapters of a model: created, routed, saved and loaded in PEFT's format."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from tunesmith.errors import AdapterError, ModelError
from tunesmith.models.catalog import CARD, read_card
from tunesmith.models.lora import LoRALinear, LoRASettings, LowRank, Routing, Whole

PREFIX = "base_model.model."

W = TypeVar("W", LoRALinear, Whole)


class Adapters:
    """All adapters of one model: wraps its linear layers once, then adds and removes by name."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.routing = model, Routing()
        self.settings: dict[str, LoRASettings] = {}
        # As the base has them, before any is wrapped.
        self._embedding = model.get_input_embeddings()  # pyright: ignore[reportCallIssue]
        self._head = model.get_output_embeddings()  # pyright: ignore[reportCallIssue]
        self._bare = {
            path: module
            for path, module in model.named_modules()
            if not list(module.children()) and list(module.parameters())
        }

    def create(self, name: str, settings: LoRASettings, *, seed: int = 0) -> None:
        """A fresh adapter; the same seed starts it the same way."""
        generator = torch.Generator().manual_seed(seed)
        whole = self.whole(settings.modules_to_save)
        for path in self.targets(settings.targets):
            if settings.dora and not self._linear(path).weight.is_floating_point():
                raise ModelError(
                    "DoRA beside weights in 4 bits",
                    expected="weights whose rows have a length",
                    remedy="Use method.adapter=qlora.",
                )
            if path not in whole:
                low = LowRank(self._linear(path), settings)
                low.start(generator)
                self._attach(path, name, low)
        # At once: copies of modules that share a weight share one too.
        for path, module in copy.deepcopy({path: self._bare[path] for path in whole}).items():
            self._wrapped(path, Whole).copies[name] = module.requires_grad_()
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
        dtype = self._embedding.weight.dtype
        for path, low in self.lows(name):
            low.settle(layers[path].weight, dtype)

    def parameters(self, name: str) -> list[nn.Parameter]:
        """What is trained of one adapter: its masters, then the modules that it has whole."""
        low = [weight for _, low in self.lows(name) for weight in low.parameters()]
        # A weight that two modules share is one weight.
        whole = [w for _, module in self.copies(name) for w in module.parameters()]
        return [*low, *dict.fromkeys(whole)]

    @property
    def embeddings(self) -> tuple[str, ...]:
        """Paths of the input embedding and the head."""
        ends = self._embedding, self._head
        return tuple(path for path, module in self._bare.items() if module in ends)

    def copies(self, name: str) -> Iterator[tuple[str, nn.Module]]:
        """The modules that an adapter has whole by their path, in the model's order."""
        for path, module in self.model.named_modules():
            if isinstance(module, Whole) and name in module.copies:
                yield path, module.copies[name]

    def whole(self, wanted: tuple[str, ...]) -> list[str]:
        """Paths of the modules of these names, and of those that share a weight with one of them.

        A name means what PEFT takes it for: every module whose path ends so.

        Raises:
            ModelError: a name matches no module that has weights of its own.
        """
        found = [path for path in self._bare if path.endswith(wanted)]
        missing = [name for name in wanted if not any(path.endswith(name) for path in found)]
        _none_missing(missing, self._bare, "is to be trained whole")
        tied = {id(weight) for path in found for weight in self._bare[path].parameters()}
        return [
            path
            for path, module in self._bare.items()
            if any(id(weight) in tied for weight in module.parameters())
        ]

    def targets(self, wanted: tuple[str, ...] | str) -> list[str]:
        """Paths of the linear layers that an adapter stands beside.

        Raises:
            ModelError: a name matches no linear layer.
        """
        found = [
            path
            for path, layer in self._bare.items()
            if isinstance(layer, nn.Linear) and layer is not self._head
        ]
        if not found:
            raise ModelError(
                f"{type(self.model).__name__} has no linear layers",
                expected="nn.Linear layers, which an adapter stands beside",
            )
        if isinstance(wanted, str):
            return found
        missing = [name for name in wanted if not any(_ends(path, name) for path in found)]
        _none_missing(missing, found, "is to have an adapter beside it")
        return [path for path in found if any(_ends(path, name) for name in wanted)]

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The weights of an adapter by their names in PEFT's file."""
        found: dict[str, Tensor] = {}
        for path, low in self.lows(name):
            found |= _saved(path, low)
        for path, module in self.copies(name):
            bare = dict(self._bare[path].named_parameters())
            for key, weight in module.named_parameters():
                # As the base has it: what is trained may be held wider.
                found[f"{PREFIX}{path}.{key}"] = weight.to(bare[key].dtype)
        return found

    def save(
        self,
        name: str,
        folder: Path,
        *,
        base: str,
        card: Mapping[str, Any],
        tensors: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Write an adapter as PEFT does: adapter_model.safetensors and adapter_config.json.

        The file holds the float32 masters; tunesmith.json beside it names the weights that the
        adapter belongs to.

        Args:
            tensors: those of `tensors`, where they had to be gathered.
        """
        folder.mkdir(parents=True, exist_ok=True)
        settings = self.settings[name]
        held = self.tensors(name) if tensors is None else tensors
        suffixes = {path.rpartition(".")[2] for path, _ in self.lows(name)}
        whole = dict(self.copies(name))
        # Modules that share a weight have one each in the file, which allows no other way. As
        # bytes: what the disk refuses stays an OSError.
        copies = {key: weight.detach().cpu().clone() for key, weight in held.items()}
        content = save(copies, metadata={"format": "pt"})
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
            "modules_to_save": sorted(whole) or None,
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
        }
        weights = [id(weight) for module in whole.values() for weight in module.parameters()]
        if len(set(weights)) < len(weights):
            config["ensure_weight_tying"] = True
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
            modules_to_save=tuple(config.get("modules_to_save") or ()),
        )
        tensors = load_file(folder / "adapter_model.safetensors")
        try:
            whole = self._copied(self._in_file(settings.modules_to_save, tensors), tensors)
            paths = [path for path in self.targets(settings.targets) if path not in whole]
        except ModelError as error:
            raise AdapterError(error.found, expected=error.expected) from None
        lows = {path: LowRank(self._linear(path), settings) for path in paths}
        weights: dict[str, Tensor] = {
            key: weight for path in paths for key, weight in _saved(path, lows[path]).items()
        }
        for path, module in whole.items():
            weights |= {f"{PREFIX}{path}.{key}": w for key, w in module.named_parameters()}
        _check(tensors, weights, folder)
        for key, weight in weights.items():
            with torch.no_grad():
                weight.copy_(tensors[key])
        self._detach(name)
        for path, low in lows.items():
            self._attach(path, name, low)
        for path, module in whole.items():
            self._wrapped(path, Whole).copies[name] = module
        self.settings[name] = settings

    def _in_file(self, names: tuple[str, ...], tensors: Mapping[str, Tensor]) -> list[str]:
        """The modules of these names, and those tied to them that the file has as well."""
        return [
            path
            for path in self.whole(names)
            if path.endswith(names) or any(key.startswith(f"{PREFIX}{path}.") for key in tensors)
        ]

    def _copied(self, paths: Sequence[str], tensors: Mapping[str, Tensor]) -> dict[str, nn.Module]:
        """Copies of modules; a weight that two share stays one, unless a file has two for it."""
        copies = copy.deepcopy({path: self._bare[path] for path in paths})
        found: dict[nn.Parameter, Tensor] = {}
        for path, module in copies.items():
            for key, weight in module.named_parameters():
                tensor = tensors.get(f"{PREFIX}{path}.{key}")
                if tensor is not None and not torch.equal(found.setdefault(weight, tensor), tensor):
                    return {path: copy.deepcopy(self._bare[path]) for path in paths}
        return copies

    def _detach(self, name: str) -> None:
        for module in self.model.modules():
            held = module.adapters if isinstance(module, LoRALinear) else None
            held = module.copies if isinstance(module, Whole) else held
            if held is not None and name in held:
                del held[name]

    def _linear(self, path: str) -> nn.Linear:
        layer = self._bare[path]
        assert isinstance(layer, nn.Linear)
        return layer

    def _attach(self, path: str, name: str, low: LowRank) -> None:
        low.train(self.model.training)
        self._wrapped(path, LoRALinear).adapters[name] = low

    def _wrapped(self, path: str, kind: type[W]) -> W:
        """The wrapper around a module of the base, made when it is not there."""
        module = self.model.get_submodule(path)
        if not isinstance(module, kind):
            module = kind(module, self.routing)  # pyright: ignore[reportArgumentType]
            parent, _, leaf = path.rpartition(".")
            setattr(self.model.get_submodule(parent), leaf, module)
        return module


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


def _none_missing(missing: Sequence[str], there: Iterable[str], what: str) -> None:
    if missing:
        names = sorted({path.rpartition(".")[2] for path in there})
        raise ModelError(
            f"{', '.join(missing)} {what}",
            expected=f"modules that the model has: {', '.join(names)}",
        )


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
