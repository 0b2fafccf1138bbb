"""The trainer's verbs: forward_backward, optim_step, validate, save."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from tunesmith.errors import TrainingError
from tunesmith.models.load import LoadedModel
from tunesmith.models.lora import LoRASettings
from tunesmith.models.tree import PackedBatch
from tunesmith.train.objectives import Branches, Loss, Objective
from tunesmith.train.ranks import Ranks

ADAPTER = "trained"


class Trainer:
    """An adapter that learns beside a frozen model.

    Args:
        model: the base; the adapter is added to it.
        settings: rank, alpha, targets.
        seed: of the adapter's start, and of dropout where the caller does not seed it anew.
        weight_decay: decoupled, of AdamW (Loshchilov and Hutter 2017, arXiv:1711.05101).
        ranks: the processes that train as one; each is given its own rows.
    """

    def __init__(
        self,
        model: LoadedModel,
        settings: LoRASettings,
        *,
        seed: int,
        weight_decay: float = 0.0,
        ranks: Ranks | None = None,
    ) -> None:
        self.model, self.ranks = model, ranks or Ranks()
        model.adapters.create(ADAPTER, settings, seed=seed)
        model.adapters.routing.all = ADAPTER
        torch.manual_seed(seed)
        self.weights = model.adapters.parameters(ADAPTER)
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
        self._count += loss.count
        return Loss(loss.sum.detach(), loss.count, loss.metrics)

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
        norm = float(torch.nn.utils.clip_grad_norm_(self.weights, clip))
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
        self._count = 0.0
        return norm

    @torch.no_grad()
    def validate(self, batches: Iterable[PackedBatch], objective: Objective) -> float:
        """The objective's mean over all processes' batches, without dropout, one at a time."""
        total, count = 0.0, 0.0
        for batch in batches:
            loss = objective(self._branches(batch))
            total, count = total + float(loss.sum), count + loss.count
        total, count = self.ranks.total([total, count])
        return total / count

    def save(self, folder: Path, *, base: str, card: Mapping[str, Any]) -> None:
        """Write the adapter in PEFT's format."""
        self.model.adapters.save(ADAPTER, folder, base=base, card=card)

    def state(self) -> dict[str, Any]:
        """All that the next step depends on but its number, which its random draws come from."""
        return {
            "weights": [weight.detach() for weight in self.weights],
            "optimizer": self.optimizer.state_dict(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`."""
        with torch.no_grad():
            for weight, saved in zip(self.weights, state["weights"], strict=True):
                weight.copy_(saved)
        self.optimizer.load_state_dict(state["optimizer"])

    def _branches(self, batch: PackedBatch) -> Branches:
        device = self.model.device
        trained = batch.trained
        return Branches(
            logprobs=self.model.logprobs(batch),
            weight=torch.from_numpy(batch.weight[trained]).to(device),
            branch=torch.from_numpy(batch.branch[trained]).to(device),
        )

    def _dropout(self, *, on: bool) -> None:
        for _, low in self.model.adapters.lows(ADAPTER):
            low.train(on)
