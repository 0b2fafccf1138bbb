"""Models and adapters as GGUF, the format of llama.cpp: written from safetensors, without torch.

Names of tensors are those of the package `gguf`. Matrices are written in float16 or float32, what
has one dimension in float32. What llama.cpp would compute otherwise is refused.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from gguf import (
    MODEL_ARCH_NAMES,
    GGUFReader,
    GGUFType,
    GGUFValueType,
    GGUFWriter,
    Keys,
    LlamaFileType,
)
from numpy.typing import NDArray

from tunesmith.errors import AdapterError, ModelError
from tunesmith.models import fetch, gguf_vocab
from tunesmith.models.catalog import read_card
from tunesmith.models.gguf_family import (
    FAMILIES,
    HEADER,
    Family,
    described,
    names,
    read_config,
    refusal,
    rope,
    stretched,
    turned,
)

PEFT = "base_model.model."
DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
LARGEST = float(np.finfo(np.float16).max)

Array = NDArray[Any]


def adapter_refusal(adapter: Path) -> str:
    """Why an adapter has no form of its own in GGUF; empty where it has one."""
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    if config.get("use_dora"):
        return "DoRA has no form in GGUF"
    for key in ("modules_to_save", "rank_pattern", "alpha_pattern"):
        if config.get(key):
            return f"{key} has no form in GGUF"
    if config.get("peft_type") != "LORA" or config.get("bias", "none") != "none":
        return "only LoRA and rsLoRA have a form in GGUF"
    return ""


def base(folder: Path, *, wide: bool = False) -> Path:
    """The model as a GGUF file of tunesmith's cache, written at the first use.

    Args:
        wide: float32 instead of float16.

    Raises:
        ModelError: the model cannot be written so.
    """
    digest = hashlib.sha256()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", HEADER):
        file = folder / name
        digest.update(file.read_bytes() if file.is_file() else b"-")
    name = f"{'f32' if wide else 'f16'}-{digest.hexdigest()[:12]}.gguf"
    return _once(place(folder) / name, lambda out: write_base(folder, out, wide=wide))


def adapter(folder: Path, lora: Path) -> Path:
    """An adapter of a model as a GGUF file of tunesmith's cache, written at the first use.

    Raises:
        AdapterError: it has no such form, or belongs to other weights.
    """
    weights, config = lora / "adapter_model.safetensors", lora / "adapter_config.json"
    if not weights.is_file() or not config.is_file():
        raise AdapterError(f"{lora} is no adapter", expected="a folder in PEFT's format")
    digest = hashlib.sha256(config.read_bytes())
    digest.update(weights.read_bytes())
    name = f"adapter-{digest.hexdigest()[:16]}.gguf"
    return _once(place(folder) / name, lambda out: write_adapter(folder, lora, out))


def place(folder: Path) -> Path:
    """The cache's folder for a model's files."""
    return fetch.home() / "gguf" / fetch.weights_hash(folder)


def _once(path: Path, write: Callable[[Path], None]) -> Path:
    """The file, written beside its place and renamed into it."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(str(path) + ".lock"):
            if not path.is_file():
                scratch = path.with_name(f".{path.name}.{os.getpid()}")
                try:
                    write(scratch)
                    scratch.replace(path)
                finally:
                    scratch.unlink(missing_ok=True)
    return path


def write_base(folder: Path, out: Path, *, wide: bool = False) -> None:
    """Write a model folder as one GGUF file with its tokenizer and chat template.

    Raises:
        ModelError: llama.cpp would compute it otherwise, or float16 cannot hold a weight.
    """
    why = refusal(folder)
    if why:
        raise ModelError(
            f"{folder.name} cannot be written as GGUF: {why}",
            expected=f"one of {', '.join(FAMILIES)}, as llama.cpp computes it",
            remedy="Export it with --to merged, and serve it with --engine local.",
        )
    config = read_config(folder)
    family = FAMILIES[config["model_type"]]
    writer = GGUFWriter(out, MODEL_ARCH_NAMES[family.arch])
    if (folder / HEADER).is_file():
        _copy_fields(writer, folder / HEADER)
        values = gguf_vocab.specials(folder)
    else:
        values = described(config, family, writer.arch)
        values |= gguf_vocab.fields(folder, int(config["vocab_size"]))
    kind = LlamaFileType.ALL_F32 if wide else LlamaFileType.MOSTLY_F16
    values |= {Keys.General.TYPE: GGUFType.MODEL, Keys.General.FILE_TYPE: int(kind)}
    if licence := read_card(folder).get("licence"):
        values[Keys.General.LICENSE] = str(licence)
    _add_fields(writer, values)
    _write(writer, _as_llama(folder, config, family), wide=wide)


def write_adapter(folder: Path, lora: Path, out: Path) -> None:
    """Write a LoRA folder in PEFT's format as a GGUF file for the GGUF file of its base.

    llama.cpp scales by alpha / r, so alpha of rsLoRA is written times the root of r.

    Raises:
        AdapterError: it has no form in GGUF, or belongs to other weights.
    """
    card, why = read_card(lora), adapter_refusal(lora)
    if why or card.get("held_in") == "nf4":
        raise AdapterError(
            f"{lora.name} cannot be written as GGUF: {why or 'it was trained beside 4 bits'}",
            expected="LoRA or rsLoRA on linear layers",
            remedy="Merge it into its base (tunesmith export --to merged), or use --engine local.",
        )
    if card.get("base_weights", fetch.weights_hash(folder)) != fetch.weights_hash(folder):
        raise AdapterError(
            f"the adapter in {lora} was trained on weights {card['base_weights'][:12]}",
            expected=f"an adapter of {fetch.weights_hash(folder)[:12]}, the weights of {folder}",
        )
    settings = json.loads((lora / "adapter_config.json").read_text(encoding="utf-8"))
    config = read_config(folder)
    family = FAMILIES[config["model_type"]]
    rank, alpha = int(settings["r"]), float(settings["lora_alpha"])
    writer = GGUFWriter(out, MODEL_ARCH_NAMES[family.arch])
    _add_fields(
        writer,
        {
            Keys.General.TYPE: GGUFType.ADAPTER,
            Keys.Adapter.TYPE: "lora",
            Keys.Adapter.LORA_ALPHA: alpha * math.sqrt(rank)
            if settings.get("use_rslora")
            else alpha,
        },
    )
    _write(writer, _low_ranks(lora, config, family), wide=True)


def keep_header(source: Path, out: Path) -> None:
    """Write the metadata of a GGUF file to another that holds no tensors."""
    writer = GGUFWriter(out, "")
    _copy_fields(writer, source)
    _write(writer, {}, wide=True)


def _add_fields(writer: GGUFWriter, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        kind = GGUFValueType.get_type(value)
        # What is not negative by its meaning has a type without a sign.
        kind = GGUFValueType.UINT32 if kind == GGUFValueType.INT32 else kind
        writer.kv_data[0].pop(key, None)
        writer.add_key_value(key, value, kind)


def _copy_fields(writer: GGUFWriter, source: Path) -> None:
    """The metadata of another file, without what is said of its numbers."""
    for key, found in GGUFReader(source).fields.items():
        if key.startswith("GGUF.") or key.endswith(("file_type", "quantization_version")):
            continue
        inner = found.types[-1] if found.types[0] == GGUFValueType.ARRAY else None
        writer.kv_data[0].pop(key, None)
        writer.add_key_value(key, found.contents(), found.types[0], sub_type=inner)


@dataclass(frozen=True, slots=True)
class _Stored:
    """A tensor in a file of safetensors, read when it is written."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    turned: int = 0
    """Heads whose rows are put in llama.cpp's order."""
    shift: float = 0.0

    def read(self) -> Array:
        """In float32."""
        raw = np.memmap(self.file, DTYPES[self.dtype], "r", self.start, self.shape)
        if self.dtype == "BF16":
            raw = (raw.astype(np.uint32) << 16).view(np.float32)
        value = raw.astype(np.float32) + np.float32(self.shift)
        return interleaved(value, self.turned) if self.turned else value


def interleaved(value: Array, heads: int) -> Array:
    """Rows of queries or keys (heads * d, ...) with the halves of each head's d taken in turn."""
    halves = value.reshape(heads, 2, len(value) // heads // 2, -1)
    return halves.swapaxes(1, 2).reshape(value.shape)


def _stored(folder: Path) -> Iterator[tuple[str, _Stored]]:
    """Every tensor of a folder's files by its name."""
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(size))
        header.pop("__metadata__", None)
        for name, told in header.items():
            if told["dtype"] not in DTYPES:
                raise ModelError(
                    f"{name} in {file} is held in {told['dtype']}",
                    expected=f"one of {', '.join(DTYPES)}",
                )
            start = 8 + size + int(told["data_offsets"][0])
            yield name, _Stored(file, told["dtype"], tuple(told["shape"]), start)


def _as_llama(
    folder: Path, config: Mapping[str, Any], family: Family
) -> dict[str, _Stored | Array]:
    """The model's tensors by llama.cpp's names."""
    named = names(config, family)
    found: dict[str, _Stored | Array] = {}
    if rope(config).get("rope_type") == "llama3":
        found["rope_freqs.weight"] = stretched(config)
    for name, stored in _stored(folder):
        if name.endswith("inv_freq") or (
            name == "lm_head.weight" and config.get("tie_word_embeddings")
        ):
            continue
        place = named.get_name(name, try_suffixes=(".weight", ".bias"))
        if place is None:
            raise ModelError(
                f"{name} of {folder} has no place in GGUF", expected="the tensors of its family"
            )
        shift = family.shift if name.endswith("norm.weight") else 0.0
        heads = turned(name, config, family)
        found[place] = _Stored(stored.file, stored.dtype, stored.shape, stored.start, heads, shift)
    return found


def _low_ranks(lora: Path, config: Mapping[str, Any], family: Family) -> dict[str, _Stored | Array]:
    """An adapter's tensors by llama.cpp's names."""
    named = names(config, family)
    found: dict[str, _Stored | Array] = {}
    for name, stored in _stored(lora):
        stem, _, part = name.removeprefix(PEFT).removesuffix(".weight").rpartition(".")
        place = named.get_name(f"{stem}.weight", try_suffixes=(".weight",))
        if part not in ("lora_A", "lora_B") or place is None:
            raise AdapterError(
                f"{name} of {lora} has no place in GGUF",
                expected="lora_A and lora_B of linear layers",
            )
        heads = turned(name, config, family) if part == "lora_B" else 0
        found[f"{place}.{part.lower()}"] = _Stored(
            stored.file, stored.dtype, stored.shape, stored.start, heads
        )
    return found


def _write(writer: GGUFWriter, tensors: Mapping[str, _Stored | Array], *, wide: bool) -> None:
    """The file: its head, then one tensor after the other."""
    kinds = {
        name: np.dtype(np.float32 if wide or len(tensor.shape) == 1 else np.float16)
        for name, tensor in tensors.items()
    }
    for name, tensor in tensors.items():
        size = math.prod(tensor.shape) * kinds[name].itemsize
        writer.add_tensor_info(name, tensor.shape, kinds[name], size)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    try:
        for name, tensor in tensors.items():
            value = tensor.read() if isinstance(tensor, _Stored) else tensor
            if kinds[name] == np.float16 and float(np.abs(value).max(initial=0.0)) > LARGEST:
                raise ModelError(
                    f"{name} has values beyond {LARGEST:.0f}, which float16 does not hold",
                    expected="weights that float16 holds",
                    remedy="Write it with --dtype float32.",
                )
            writer.write_tensor_data(np.ascontiguousarray(value.astype(kinds[name])))
    finally:
        writer.close()
