"""Rows by themselves, for a model that a forest cannot run: state beside attention, attention of its
own, arguments dropped on the way.

Each chain of a batch is a row of a right-padded batch, and the model's own forward computes it. What
comes out has the layout of the batch, so nobody behind it sees a difference but the time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tunesmith.errors import ModelError
from tunesmith.models.attention import buckets, padded
from tunesmith.models.tree import PackedBatch, Segment, segments

CACHES = ("past_key_values", "cache_params", "state")
"""Names under which models of transformers hand out, and take in, what they keep of a row."""

Past = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Rows:
    """Hidden states of a model that computes row by row.

    Attributes:
        module: the transformers model, with its own attention.
        why: what keeps it from sharing, as a sentence without its stop.
        padded: rows of like length are computed together; otherwise one at a time.
        cached: one more token is computed from what is kept of those before it; otherwise the whole
            row is read again.
    """

    module: Any
    why: str
    padded: bool
    cached: bool = False

    def hidden(self, batch: PackedBatch, device: torch.device) -> Tensor:
        """Last hidden states (T, width) of a batch whose chains share nothing.

        Raises:
            ModelError: the chains of the batch share tokens.
        """
        runs = sorted(segments(batch), key=lambda run: run.length)
        if any(run.parent >= 0 for run in runs):
            raise ModelError(
                f"a batch whose rows share tokens, and {self.why}",
                expected="rows laid out apart",
                remedy="Pack them with share=False.",
            )
        ids = torch.from_numpy(batch.ids).to(device)
        parts: list[Tensor] = []
        order: list[Tensor] = []
        for together in self._together(runs):
            own, place = (x.to(device) for x in padded(together))
            hidden = self._forward(ids[own], [run.length for run in together])
            parts.append(hidden.flatten(0, 1).index_select(0, place))
            order.append(own.flatten()[place])
        return torch.cat(parts).index_select(0, torch.argsort(torch.cat(order)))

    def read(self, ids: Sequence[int], past: Past, device: torch.device) -> tuple[Tensor, Past]:
        """Hidden states (L, width) of a row's next tokens, and what to hand in for those after them.

        Args:
            past: what came with the tokens before; empty at the start.
        """
        row = torch.tensor([ids], device=device)
        out = trunk(self.module)(input_ids=row, use_cache=self.cached, **past)
        kept = {name: value for name in CACHES if (value := getattr(out, name, None)) is not None}
        return out.last_hidden_state[0], kept if self.cached else {}

    def _together(self, runs: Sequence[Segment]) -> list[Sequence[Segment]]:
        if not self.padded:
            return [[run] for run in runs]
        return [runs[some] for some in buckets([run.length for run in runs])]

    def _forward(self, ids: Tensor, lengths: Sequence[int]) -> Tensor:
        """(n, L) -> (n, L, width); what stands behind a row's length is padding."""
        said: dict[str, Tensor] = {}
        if self.padded:
            place = torch.arange(ids.shape[1], device=ids.device)
            real = torch.tensor(lengths, device=ids.device)
            said["attention_mask"] = (place < real[:, None]).long()
        return trunk(self.module)(input_ids=ids, use_cache=False, **said).last_hidden_state


def trunk(module: Any) -> Any:
    """The model below its head; a few name it otherwise than they say."""
    base = module.base_model
    return module.model if base is module else base
