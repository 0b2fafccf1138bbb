"""What the trainer says of some answers, so that a server can be held to it (traps 1 and 18).

In bfloat16 two right ways of computing the same differ by rounding. How much, the trainer measures
on itself: each row alone against all rows in one forest.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from tunesmith.models.load import LoadedModel
from tunesmith.models.template import Chain
from tunesmith.models.tree import plant

ROWS = 8
MAX_TOKENS = 2048
"""Longer rows are passed over while there are shorter ones: the check is to be quick."""


@torch.no_grad()
def record(model: LoadedModel, rows: Sequence[tuple[Chain, ...]], path: Path | None) -> None:
    """Write ids and log-probabilities of the last answer of some rows.

    Without a path they are only computed: a process that does not write may be needed for that.

    The file is {"dtype", "noise": {"mean", "largest"}, "rows": [{"row", "ids", "logprobs"}]};
    noise is in nats, between the two ways of computing.
    """
    last = [(index, chains[-1]) for index, chains in enumerate(rows)]
    chosen = [item for item in last if len(item[1].ids) <= MAX_TOKENS][:ROWS]
    chosen = chosen or [min(last, key=lambda item: len(item[1].ids))]
    said = [
        {
            "row": index,
            "ids": chain.ids[_last_turn(chain) :],
            "logprobs": model.logprobs(plant([chain]), exact=True)[
                _last_turn(chain) - len(chain.ids) :
            ].tolist(),
        }
        for index, chain in chosen
    ]
    value = {
        "dtype": str(model.dtype).removeprefix("torch."),
        "noise": _noise(model, [chain for _, chain in chosen]),
        "rows": said,
    }
    if path is not None:
        path.write_text(json.dumps(value) + "\n", encoding="utf-8")


def _noise(model: LoadedModel, chains: Sequence[Chain]) -> dict[str, float]:
    """Differences between each chain alone and all of them in one batch."""
    batch = plant(chains, share=model.shares)
    together = model.logprobs(batch, exact=True)
    branch = torch.from_numpy(batch.branch[batch.trained]).to(together.device)
    apart = [
        (together[branch == index] - model.logprobs(plant([chain]), exact=True)).abs()
        for index, chain in enumerate(chains)
    ]
    found = torch.cat(apart)
    return {"mean": float(found.mean()), "largest": float(found.max())}


def _last_turn(chain: Chain) -> int:
    """Where the last run of trained tokens begins; a chain ends with one."""
    start = len(chain.ids)
    while chain.trained[start - 1]:
        start -= 1
    return start
