"""The trainer's verbs: forward_backward, optim_step, validate, save."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tunesmith.errors import TrainingError
from tunesmith.models.load import LoadedModel
from tunesmith.models.lora import LoRASettings
from tunesmith.models.tree import PackedBatch
from tunesmith.train.objectives import Branches, Loss, Objective
from tunesmith.train.ranks import Ranks

ADAPTER = "trained"


@dataclass(frozen=True, slots=True)
class FullSettings:
    """All weights are trained; the embeddings and the head unless told otherwise."""

    embeddings: bool = True


class Trainer:
    """A model that learns: an adapter beside it, modules of it, or all of it.

    Adam's state and the weights that it moves are float32 at least. Where the model computes with
    fewer digits they are masters: gradients are summed into theirs, and the model gets a copy after
    each step, so that small updates are not lost.

    Args:
        model: the base; an adapter is added to it.
        settings: of the adapter, or that all weights are trained.
        seed: of the adapter's start, and of dropout where the caller does not seed it anew.
        weight_decay: decoupled, of AdamW (Loshchilov and Hutter 2017, arXiv:1711.05101).
        ranks: the processes that train as one; each is given its own rows.
    """

    def __init__(
        self,
        model: LoadedModel,
        settings: LoRASettings | FullSettings,
        *,
        seed: int,
        weight_decay: float = 0.0,
        ranks: Ranks | None = None,
    ) -> None:
        self.model, self.ranks = model, ranks or Ranks()
        self.full = isinstance(settings, FullSettings)
        if isinstance(settings, FullSettings):
            learning = model.unfreeze(embeddings=settings.embeddings)
        else:
            model.adapters.create(ADAPTER, settings, seed=seed)
            model.adapters.routing.all = ADAPTER
            learning = model.adapters.parameters(ADAPTER)
        torch.manual_seed(seed)
        learning = self.ranks.hold(model, learning)
        self.weights = [_master(weight) for weight in learning]
        self._copies = [
            pair for pair in zip(self.weights, learning, strict=True) if pair[0] is not pair[1]
        ]
        self.optimizer = torch.optim.AdamW(
            self.weights, lr=0.0, betas=(0.9, 0.999), weight_decay=weight_decay, fused=True
        )
        self._count = 0.0

    def forward_backward(self, batch: PackedBatch, objective: Objective) -> Loss:
        """Add the gradient of the objective's sum; nothing is divided yet."""
        # Only the adapter's own dropout, only here: all else is as it is served.
        self._dropout(on=True)
        loss = objective(self._branches(batch))
        self._dropout(on=False)
        loss.sum.backward()  # pyright: ignore[reportUnknownMemberType]
        for master, copy in self._copies:
            if copy.grad is not None:
                grad = copy.grad.to(master.dtype)
                master.grad = grad if master.grad is None else master.grad.add_(grad)
                copy.grad = None
        self._count += loss.count
        return Loss(loss.sum.detach(), loss.count, loss.hits)

    def optim_step(self, lr: float, *, clip: float) -> float:
        """Divide by what all processes counted since the last step, clip, and update.

        Returns:
            The norm of the gradient before it was clipped.

        Raises:
            TrainingError: a gradient is not finite; the weights are as they were.
        """
        if self.ranks.size > 1:
            for weight in self.weights:
                if weight.grad is None:
                    weight.grad = torch.zeros_like(weight)
        grads = [weight.grad for weight in self.weights if weight.grad is not None]
        self.ranks.add(grads)
        (count,) = self.ranks.total([self._count])
        for grad in grads:
            grad /= count
        norm = self.ranks.clip(self.weights, clip)
        if not norm < float("inf"):
            raise TrainingError(
                f"the gradient is not finite (norm {norm})",
                expected="finite gradients",
                remedy="Lower train.learning_rate, or set model.dtype=float32.",
            )
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._copy()
        self._count = 0.0
        return norm

    @torch.no_grad()
    def validate(self, batches: Iterable[PackedBatch], objective: Objective) -> tuple[float, float]:
        """The objective's mean over all processes' batches, without dropout, one at a time.

        Returns:
            The loss and the accuracy.
        """
        total, count, hits = 0.0, 0.0, 0.0
        for batch in batches:
            loss = objective(self._branches(batch))
            total, count, hits = total + float(loss.sum), count + loss.count, hits + loss.hits
        total, count, hits = self.ranks.total([total, count, hits])
        return total / count, hits / count

    def save(self, folder: Path, *, base: str, card: Mapping[str, Any]) -> None:
        """Write the adapter in PEFT's format, or the whole model in transformers' own.

        The first process writes; where weights are sharded, all have to call.
        """
        model = self.model
        if self.full:
            tensors = model.module.state_dict(keep_vars=True)
            tensors = self.ranks.whole(tensors, model.dtype)
        else:
            tensors = self.ranks.whole(model.adapters.tensors(ADAPTER))
        if self.ranks.first and self.full:
            model.save(folder, tensors, card=card)
        elif self.ranks.first:
            model.adapters.save(ADAPTER, folder, base=base, card=card, tensors=tensors)

    def state(self) -> dict[str, Any]:
        """All that the next step depends on but its number, which its random draws come from.

        Whole in the first process; where weights are sharded, all have to call.
        """
        return self.ranks.whole(
            {
                "weights": [weight.detach() for weight in self.weights],
                "optimizer": self.optimizer.state_dict(),
            }
        )

    def restore(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`."""
        with torch.no_grad():
            for weight, saved in zip(self.weights, state["weights"], strict=True):
                weight.copy_(self.ranks.part(saved, weight))
        self._copy()
        saved = state["optimizer"]
        held = {
            index: {name: self.ranks.part(x, self.weights[index]) for name, x in moments.items()}
            for index, moments in saved["state"].items()
        }
        self.optimizer.load_state_dict({**saved, "state": held})

    def _branches(self, batch: PackedBatch) -> Branches:
        device = self.model.device
        trained = batch.trained
        scored = self.model.scored(batch)
        return Branches(
            logprobs=scored.logprobs,
            hits=scored.hits,
            weight=torch.from_numpy(batch.weight[trained]).to(device),
            branch=torch.from_numpy(batch.branch[trained]).to(device),
        )

    @torch.no_grad()
    def _copy(self) -> None:
        for master, copy in self._copies:
            copy.copy_(master)

    def _dropout(self, *, on: bool) -> None:
        for _, low in self.model.adapters.lows(ADAPTER):
            low.train(on)


def _master(weight: nn.Parameter) -> nn.Parameter:
    """The weight itself, or a float32 copy of one that has fewer digits."""
    if weight.dtype in (torch.float32, torch.float64):
        return weight
    return nn.Parameter(weight.detach().float())
