"""What held-out text says of a training run: how many bits a byte costs, before and after."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.evaluate.statistics import Floats, corpus_interval
from tunesmith.pipeline.folder import RunFolder

LEAST = 2
"""Independent texts without which there is no interval."""


def summary(folder: RunFolder) -> dict[str, Any]:
    """Bits per byte and perplexity per token of base and tuned, from the trainer's heldout.json.

    Both are of all held-out text together; the difference is tuned - base, below 0 where training
    made the text likelier. Its interval resamples passages, and pieces of one row together. `split`
    says which rows they are: validation rows have also chosen the checkpoint, test rows nothing.
    """
    rows = folder.read_json("heldout.json")["rows"]
    if not rows:
        return {"value": None, "reason": "no text was held out"}
    sums = np.array(
        [[row[name] for name in ("base", "tuned", "bytes", "tokens")] for row in rows], np.float64
    )
    base, tuned, size, tokens = sums.sum(axis=0).tolist()
    return {
        "split": Path(folder.read_json("train.json")["heldout"]).stem,
        "passages": len(rows),
        "bytes": int(size),
        "tokens": int(tokens),
        "bits_per_byte": {
            "base": base / size / math.log(2),
            "tuned": tuned / size / math.log(2),
            "difference": _difference(sums, [f"{row['file']}:{row['line']}" for row in rows]),
        },
        "perplexity": {"base": math.exp(base / tokens), "tuned": math.exp(tuned / tokens)},
    }


def _difference(sums: Floats, texts: list[str]) -> dict[str, Any]:
    if len(set(texts)) < LEAST:
        return {"value": None, "reason": "one held-out text has no interval"}
    return asdict(corpus_interval(sums, _bits_per_byte, texts))


def _bits_per_byte(totals: Floats) -> Floats:
    return (totals[:, 1] - totals[:, 0]) / totals[:, 2] / math.log(2)
