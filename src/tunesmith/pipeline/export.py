"""A tuned model as files for other programs."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from tunesmith.chat import Message
from tunesmith.data.examples import Conversation, Source
from tunesmith.data.split import read_jsonl
from tunesmith.errors import ModelError, UsageError
from tunesmith.models import fetch, gguf, terms
from tunesmith.models.lifetime import environment
from tunesmith.pipeline.scale import write_scaled
from tunesmith.serve import engines
from tunesmith.serve.engines import EngineKind, EngineSpec
from tunesmith.store import RegisteredModel, Store

Form = Literal["adapter", "merged", "gguf"]
ASKED = (
    "Name three rivers.",
    "Write a sentence about the sea.",
    "What is 17 + 25?",
    "Translate into French: the house is red.",
    "{'id': 7, 'tags': ['a', 'b']}",
    "Why is the sky blue? Answer briefly.",
)
"""What both engines are asked where the model has no test rows of its own."""
ROWS = 12
"""Most test rows that both engines are asked."""
ANSWER = 16
"""Tokens of each answer that are compared."""


def export(
    name: str, to: Form, out: Path, *, dtype: str = "auto", scale: float = 1.0
) -> dict[str, Any]:
    """Write a registered model to a folder that is not there yet.

    Args:
        to: `adapter` is PEFT's format, `merged` a model of transformers with the adapter in its
            weights, `gguf` the files of llama.cpp: the base, and the adapter beside it.
        dtype: of merged weights; `auto` is what the base's files hold. Of GGUF, `float32` or float16.
        scale: how much of the adapter; less of it forgets less.

    Returns:
        {"out"}, and how far the files are from the model: where weights were merged (merge.Merged),
        and for GGUF (Off).

    Raises:
        UsageError: there is no such model, the folder is taken, or there is no adapter to write or
            to scale.
        ModelError: the merged weights do not answer as the adapter does, or GGUF cannot hold them.
    """
    with Store.at(fetch.home()) as store:
        found = store.model(name)
    if found is None:
        raise UsageError(f"there is no tuned model {name}", remedy="See tunesmith models list.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is there already", expected="a folder to be made")
    if found.adapter_folder is None and to == "adapter":
        raise UsageError(
            f"{name} has no adapter: all its weights were trained", expected="--to merged"
        )
    if scale != 1:
        if found.adapter_folder is None:
            raise UsageError(f"{name} has no adapter to scale: all its weights were trained")
        with tempfile.TemporaryDirectory(prefix="tunesmith-export-") as scratch:
            part = Path(scratch) / "adapter"
            write_scaled(Path(found.adapter_folder), part, scale)
            return _export(replace(found, adapter_folder=str(part)), to, out, dtype)
    return _export(found, to, out, dtype)


def _export(found: RegisteredModel, to: Form, out: Path, dtype: str) -> dict[str, Any]:
    if to == "gguf":
        return _gguf(found, out, dtype)
    if found.adapter_folder is None or to == "adapter":
        shutil.copytree(found.adapter_folder or found.base_folder, out, dirs_exist_ok=True)
        return {"out": str(out)}
    return {"out": str(out), **_merged(found.base_folder, found.adapter_folder, out, dtype)}


def _merged(base: str, adapter: str, out: Path, dtype: str) -> dict[str, Any]:
    """Base and adapter as one model in `out`; what its process said of it."""
    if out.is_dir():
        out.rmdir()
    out.parent.mkdir(parents=True, exist_ok=True)
    ran = subprocess.run(
        [sys.executable, "-m", "tunesmith.models.merge", base, adapter, str(out), "--dtype", dtype],
        env=environment(), capture_output=True, text=True, errors="replace", check=False,
    )  # fmt: skip
    lines = ran.stdout.strip().splitlines()
    said = json.loads(lines[-1]) if lines else {"error": ran.stderr.strip()[-300:]}
    if "error" in said:
        raise ModelError(said["error"])
    return said


def _gguf(found: RegisteredModel, out: Path, dtype: str) -> dict[str, Any]:
    base = Path(found.base_folder)
    adapter = Path(found.adapter_folder) if found.adapter_folder else None
    if why := gguf.refusal(base):
        raise ModelError(
            f"{found.name} cannot be written as GGUF: {why}",
            expected=f"one of {', '.join(gguf.FAMILIES)}, as llama.cpp computes it",
            remedy="Use --to merged.",
        )
    wide = dtype == "float32"
    why = gguf.adapter_refusal(adapter) if adapter else ""
    asked = _asked(adapter or base)
    if adapter is None or not why:
        return _written(base, adapter, out, asked, wide=wide)
    with tempfile.TemporaryDirectory(prefix="tunesmith-export-") as scratch:
        merged = Path(scratch) / base.name
        # In float32: it is rounded once, to what the GGUF file holds.
        said = _merged(str(base), str(adapter), merged, "float32")
        try:
            return {**_written(merged, None, out, asked, wide=wide), "merged": {"why": why, **said}}
        finally:
            shutil.rmtree(gguf.place(merged), ignore_errors=True)


def _asked(tuned: Path) -> list[Conversation]:
    """Test rows of the run that made a model, or questions of ours."""
    rows = tuned.parent / "data" / "test.jsonl"
    found = list(islice(read_jsonl(rows), ROWS)) if rows.is_file() else []
    conversations = [row for row in found if isinstance(row, Conversation)]
    ours = Source("questions", 0)
    return conversations or [
        Conversation((Message("user", text), Message("assistant", "")), ours) for text in ASKED
    ]


def _written(
    base: Path, adapter: Path | None, out: Path, asked: Sequence[Conversation], *, wide: bool
) -> dict[str, Any]:
    """The files with what other programs are told to type."""
    files = {"model.gguf": gguf.base(base, wide=wide)}
    if adapter:
        files["adapter.gguf"] = gguf.adapter(base, adapter)
    out.mkdir(parents=True, exist_ok=True)
    for name, source in files.items():
        shutil.copyfile(source, out / name)
    terms.carry(base, out)
    lines = "FROM ./model.gguf\n" + ("ADAPTER ./adapter.gguf\n" if adapter else "")
    (out / "Modelfile").write_text(lines, encoding="utf-8")
    loaded = f"-m {out / 'model.gguf'}" + (f" --lora {out / 'adapter.gguf'}" if adapter else "")
    return {
        "out": str(out),
        "files": [str(out / name) for name in (*files, "Modelfile")],
        "off": _measured(base, adapter, asked, wide=wide),
        "commands": [
            f"llama-server --jinja {loaded}",
            f"llama-cli --jinja {loaded}",
            f"ollama create {out.name.lower()} -f {out / 'Modelfile'}",
        ],
    }


@dataclass(frozen=True, slots=True)
class Off:
    """How far llama.cpp's answers from the files are from those of the model in float32.

    Attributes:
        tokens: compared, up to the first one in which two answers differ.
        mean: distance of their log-probabilities, in nats.
        largest: the largest one.
        answers: how many there are, and `same` how many of them are equal.
    """

    tokens: int
    mean: float
    largest: float
    answers: int
    same: int


def _measured(
    base: Path, adapter: Path | None, asked: Sequence[Conversation], *, wide: bool
) -> dict[str, Any] | None:
    """Greedy answers of both engines side by side; None where llama.cpp is not installed."""
    if importlib.util.find_spec("xllamacpp") is None:
        return None
    kinds: tuple[tuple[EngineKind, str], ...]
    kinds = ("llama.cpp", "float32" if wide else "auto"), ("local", "float32")
    adapters = {"adapter": adapter} if adapter else {}
    specs = [EngineSpec(base, "base", adapters, dtype, ROWS, kind=kind) for kind, dtype in kinds]
    theirs, ours = asyncio.run(_both(specs, asked))
    gaps: list[float] = []
    for one, other in zip(theirs, ours, strict=True):
        for (token, logprob), (wanted, expected) in zip(one, other, strict=False):
            if token != wanted:
                break
            if logprob > -9999:
                gaps.append(abs(logprob - expected))
    same = sum([t for t, _ in a] == [t for t, _ in b] for a, b in zip(theirs, ours, strict=True))
    mean = sum(gaps) / max(1, len(gaps))
    return asdict(Off(len(gaps), mean, max(gaps, default=0.0), len(asked), same))


async def _both(
    specs: Sequence[EngineSpec], asked: Sequence[Conversation]
) -> list[list[list[tuple[str, float]]]]:
    """Each engine's greedy answers: their tokens with their log-probabilities."""
    out: list[list[list[tuple[str, float]]]] = []
    for spec in specs:
        log = fetch.home() / "logs" / "export.log"
        async with await engines.start(spec, log=log) as engine:
            model = engine.chat(next(iter(spec.adapters), None))
            answers = (model.greedy(row.prompt, ANSWER, row.tools) for row in asked)
            out.append(await asyncio.gather(*answers))
    return out
