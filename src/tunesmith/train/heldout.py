"""How likely held-out text is, before training and after it: what `tunesmith train` ends with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch

from tunesmith.data.examples import Document
from tunesmith.data.split import read_jsonl
from tunesmith.models import document
from tunesmith.models.load import LoadedModel
from tunesmith.models.tree import plant

FILE = "heldout.json"


def measure(
    model: LoadedModel, texts: Path, folder: Path | None, column: Literal["base", "tuned"]
) -> None:
    """Write into heldout.json what each held-out document costs the model as it is now.

    The file is {"rows": [{"file", "line", "bytes", "tokens", "base", "tuned"}]}: the bytes and tokens
    that are predicted, and their negative log-likelihood in nats. The token that ends a text is left
    out: it has no bytes. So are texts of one token, in which nothing is predicted.

    Args:
        texts: a file of documents.
        folder: the run's; a first call makes the file, a second one adds its column. None for a
            process that does not write and is needed for the computation.
    """
    rows = [
        {**_known(model, text), column: _nats(model, text)}
        for text in read_jsonl(texts)
        if isinstance(text, Document) and _chain(model, text).trained_count
    ]
    if folder is None:
        return
    path = folder / FILE
    if column == "tuned":
        before = json.loads(path.read_text(encoding="utf-8"))["rows"]
        rows = [{**old, **new} for old, new in zip(before, rows, strict=True)]
    scratch = path.with_name(f".{FILE}.partial")
    scratch.write_text(json.dumps({"rows": rows}, indent=1) + "\n", encoding="utf-8")
    scratch.replace(path)


def _known(model: LoadedModel, text: Document) -> dict[str, Any]:
    return {
        "file": text.source.file,
        "line": text.source.line,
        "bytes": document.predicted_bytes(model.template, text.text),
        "tokens": _chain(model, text).trained_count,
    }


def _chain(model: LoadedModel, text: Document) -> document.Chain:
    return document.chain(model.template, text.text, ends=False)


@torch.no_grad()
def _nats(model: LoadedModel, text: Document) -> float:
    return -float(model.logprobs(plant([_chain(model, text)])).double().sum())
