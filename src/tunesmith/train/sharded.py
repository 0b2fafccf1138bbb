"""Fully sharded data parallelism (FSDP2): each process holds a part of every weight.

Rajbhandari et al. 2020 (arXiv:1910.02054, stage 3) with torch's fully_shard: a layer's weights,
frozen ones too, are gathered when it runs, forward and backward, and its gradients are added and
dealt out again. So every process has to run as many passes as the others, and none can go on alone.

Left out: every process loads the whole model before it keeps its part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map_only

from tunesmith.errors import TrainingError
from tunesmith.models.kernels import exact
from tunesmith.models.load import LoadedModel, layers
from tunesmith.models.logprobs import Scored
from tunesmith.models.lora import LoRALinear
from tunesmith.models.template import Chain
from tunesmith.models.tree import PackedBatch, plant
from tunesmith.train.ranks import Ranks

NOTHING = plant([Chain((0, 0), (False, False))])
"""A batch that trains no token: its loss and all of its gradients are zero."""


class Sharded(Ranks):
    """Processes that hold a model together."""

    __slots__ = ()
    together: ClassVar[bool] = True

    @classmethod
    def join(cls) -> Self:
        """As Ranks, with NCCL for what is gathered on GPUs.

        Raises:
            TrainingError: there is one process.
        """
        ranks = super().join()
        if ranks.size == 1:
            raise TrainingError(
                "train.sharding=full with one process",
                expected="two processes or more, which hold the weights together",
                remedy="Set train.processes=2, or train.sharding=none.",
            )
        return ranks

    @staticmethod
    def backend() -> str:
        """Of the process group, by device."""
        return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"

    def hold(self, model: LoadedModel, learning: Sequence[nn.Parameter]) -> list[nn.Parameter]:
        """Keep this process's part of every weight.

        Trained weights are kept in float32 at least, and gathered in the model's dtype: the parts
        are masters.

        Args:
            learning: the weights that are trained, whole and the same in every process.

        Returns:
            The parts of these, in their order.

        Raises:
            TrainingError: the model is on a device or held in a way that cannot be sharded.
        """
        masters = _masters(model)
        _refuse(model, masters)
        names = {id(weight): name for name, weight in model.module.named_parameters()}
        wanted = [names[id(weight)] for weight in learning]
        mesh = init_device_mesh(model.device.type, (self.size,))
        root = _Root(model.module)
        for unit in [*_units(model), root]:
            low = any(id(weight) in masters for weight in _own(unit))
            _shard(unit, mesh, None if low else model.dtype)
        model.around = _around(root)
        held = dict(model.module.named_parameters())
        return [held[name] for name in wanted]

    def even(self, batches: Sequence[PackedBatch]) -> list[PackedBatch]:
        """The batches, and as many empty ones as make them as many as any process has."""
        most = torch.tensor(len(batches))
        dist.all_reduce(most, dist.ReduceOp.MAX)
        return [*batches, *[NOTHING] * (int(most) - len(batches))]

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Nothing: gradients were added as they were dealt out."""

    def clip(self, weights: Sequence[nn.Parameter], limit: float) -> float:
        """As Ranks, over the parts of all processes."""
        return float(_gathered(nn.utils.clip_grad_norm_(weights, limit)))

    def whole(self, value: Any, dtype: torch.dtype | None = None) -> Any:
        """As Ranks: gathered on the CPU of the first process; in the others they are empty."""
        gathered: dict[int, Tensor] = {}

        def gather(part: DTensor) -> Tensor:
            # A weight of two names stays one weight.
            if id(part) not in gathered:
                tensor = _gathered(part.detach().to(dtype or part.dtype))
                gathered[id(part)] = tensor.cpu() if self.first else tensor.new_empty(0)
            return gathered[id(part)]

        return tree_map_only(DTensor, gather, value)

    def part(self, value: Tensor, weight: Tensor) -> Tensor:
        """As Ranks."""
        if value.shape != weight.shape:
            return value
        assert isinstance(weight, DTensor)
        value = value.to(weight.device)
        # Each process has the whole of it: nothing is to be sent.
        return distribute_tensor(value, weight.device_mesh, weight.placements, src_data_rank=None)


class _Root(nn.Module):
    """The whole model as a module whose forward pass is any use of it, the head's included.

    What belongs to no layer (embedding, last norm, head) is gathered as long as that lasts.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, compute: Callable[[], Scored]) -> Scored:
        """What the computation gives."""
        return compute()


def _gathered(part: Tensor) -> Tensor:
    """The whole of a tensor, in every process."""
    assert isinstance(part, DTensor)
    return part.full_tensor()


def _around(root: _Root) -> Callable[[Callable[[], Scored]], Scored]:
    assert isinstance(root, FSDPModule)

    def run(compute: Callable[[], Scored]) -> Scored:
        out: Scored = root(compute)
        if not torch.is_grad_enabled():
            # No backward pass will do it, and weights that are gathered are not gathered again.
            root.reshard()
        return out

    return run


def _units(model: LoadedModel) -> Iterator[nn.Module]:
    """What is gathered at once beside the root, inner ones first: the layers, and what their groups
    or the root's have no room for, as the trained weights of a group are gathered in one dtype.
    """
    inside = {id(part) for layer in layers(model.module) for part in layer.modules()}
    for module in model.module.modules():
        if isinstance(module, LoRALinear) and id(module) not in inside:
            yield module
    for name in model.adapters.settings:
        yield from (copy for _, copy in model.adapters.copies(name) if id(copy) in inside)
    yield from reversed(layers(model.module))


def _shard(unit: nn.Module, mesh: DeviceMesh, narrow: torch.dtype | None) -> None:
    """Part what no inner unit has taken.

    Args:
        narrow: what its weights are gathered in; None for what each is held in.
    """
    own = _own(unit)
    for weight in own:
        if weight.requires_grad:
            weight.data = exact(weight.data)
    policy = MixedPrecisionPolicy(
        param_dtype=narrow,
        reduce_dtype=torch.promote_types(narrow or torch.float32, torch.float32),
        cast_forward_inputs=False,
    )
    fully_shard(unit, mesh=mesh, mp_policy=policy)
    for weight in own:
        # Whoever still knows it shall not keep its memory.
        weight.data = weight.data.new_empty(0)
    assert isinstance(unit, FSDPModule)
    # Sums, never means: what divides them is counted over all processes.
    unit.set_gradient_divide_factor(1.0)
    unit.set_force_sum_reduction_for_comms(True)


def _own(unit: nn.Module) -> list[nn.Parameter]:
    return [weight for weight in unit.parameters() if not isinstance(weight, DTensor)]


def _masters(model: LoadedModel) -> set[int]:
    """The ids of an adapter's matrices: float32, whatever the model computes in."""
    return {
        id(weight)
        for name in model.adapters.settings
        for _, low in model.adapters.lows(name)
        for weight in low.parameters()
    }


def _refuse(model: LoadedModel, masters: set[int]) -> None:
    if model.device.type not in ("cpu", "cuda"):
        raise TrainingError(
            f"train.sharding=full on {model.device.type}",
            expected="CUDA or the CPU",
            remedy="Use train.sharding=none.",
        )
    if not model.shares:
        raise TrainingError(
            f"train.sharding=full with a model that is computed row by row: {model.why}",
            expected="a model whose rows are computed together, in equally many passes everywhere",
            remedy="Use train.sharding=none.",
        )
    kinds = {weight.dtype for weight in model.module.parameters() if id(weight) not in masters}
    if len(kinds) > 1:
        names = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
        raise TrainingError(
            f"train.sharding=full with weights in {names}",
            expected="weights in one floating-point type; 4-bit weights cannot be parted",
            remedy="Use model.dtype=bfloat16, or train.sharding=none.",
        )
