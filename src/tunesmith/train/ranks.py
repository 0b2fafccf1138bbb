"""Several processes that train as one.

Each takes its rows of every step. What is added over the processes are sums and what divides them,
never means, so that uneven rows weigh what they weigh in one process (traps 5 to 7). Started with
the environment that torchrun sets.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tunesmith.models.tree import PackedBatch

if TYPE_CHECKING:
    from tunesmith.models.load import LoadedModel

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ranks:
    """Which of how many processes this is; each holds the whole model.

    Attributes:
        together: whether a pass of the model, or its weights, take all processes.
    """

    rank: int = 0
    size: int = 1
    together: ClassVar[bool] = False

    @classmethod
    def join(cls) -> Self:
        """Meet the other processes, one GPU for each where there are any; alone without torchrun."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls()
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group(cls.backend())
        return cls(dist.get_rank(), size)

    @staticmethod
    def backend() -> str:
        """One vector a step: gloo is fast enough for an adapter, and needs no GPU of its own."""
        return "gloo"

    def leave(self) -> None:
        """The end, for all."""
        if self.size > 1:
            dist.destroy_process_group()

    @property
    def first(self) -> bool:
        """Whether this is the one that speaks and writes."""
        return self.rank == 0

    def own(self, items: Sequence[T]) -> list[T]:
        """The share of this process."""
        return list(items[self.rank :: self.size])

    def even(self, batches: Sequence[PackedBatch]) -> list[PackedBatch]:
        """The batches that this process has to run, of those that it has."""
        return list(batches)

    def hold(self, model: LoadedModel, learning: Sequence[nn.Parameter]) -> list[nn.Parameter]:
        """Take a model that is about to be trained.

        Returns:
            What this process holds of the weights that are trained, in their order.
        """
        return list(learning)

    def whole(self, value: Any, dtype: torch.dtype | None = None) -> Any:
        """The value with every tensor in it whole, in the first process at least.

        Args:
            value: of lists and dictionaries.
            dtype: what masters are narrowed to.
        """
        return value

    def part(self, value: Tensor, weight: Tensor) -> Tensor:
        """What belongs to a weight as this process holds it, of a whole tensor; inverse of `whole`."""
        return value

    def clip(self, weights: Sequence[nn.Parameter], limit: float) -> float:
        """Scale the gradient down to a norm of `limit` where it is larger; the norm before."""
        return float(nn.utils.clip_grad_norm_(weights, limit))

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the processes."""
        if self.size == 1:
            return
        flat = torch.cat([tensor.detach().flatten() for tensor in tensors]).cpu()
        dist.all_reduce(flat)
        parts = flat.split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def total(self, numbers: Sequence[float]) -> list[float]:
        """The sum of each number over the processes."""
        if self.size == 1:
            return list(numbers)
        held = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(held)
        return held.tolist()
