"""Where a training step's time and memory go: `python -m tunesmith.train.profile spec.json`.

Every operation of a step is timed as it is dispatched, forward and backward, and put under a
heading. The limit is the same step's matrix products timed alone, each with its inputs at hand. One
JSON value goes to standard output.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tunesmith.data.split import read_jsonl
from tunesmith.train import methods, objectives
from tunesmith.train.fit import rows_of_step, trainer_of
from tunesmith.train.pack import pack
from tunesmith.train.spec import TrainSpec

WARM = 2
STEPS = 5
REPEATS = 5
PRODUCTS = ("mm", "addmm", "addmm_", "bmm", "baddbmm", "linear")
HEADINGS: Mapping[str, tuple[str, ...]] = {
    "matrix products": PRODUCTS,
    "fused attention": ("_scaled_dot_product_flash_attention_for_cpu",),
    "optimiser": ("_fused_adamw_", "_foreach_norm", "_foreach_mul_"),
    "copies and casts": ("_to_copy", "clone", "copy_", "cat", "index_select", "index_copy_"),
}
REST = "element by element"

Signature = tuple[str, tuple[tuple[tuple[int, ...], tuple[int, ...], torch.dtype], ...]]


@dataclass(frozen=True, slots=True)
class Profile:
    """A step on this machine.

    Attributes:
        step: wall seconds, the median of some steps without any measuring inside.
        parts: seconds by heading while every operation is measured; they take longer than `step`.
        outside: seconds of such a step that no operation accounts for.
        products: seconds of the step's matrix products alone.
        ratio: step / products; 1 cannot be reached.
        system: share of the processor time that the operating system took.
        memory_mb: resident memory, or what the device held at most.
    """

    rows: int
    tokens: int
    distinct_tokens: int
    step: float
    parts: Mapping[str, float]
    outside: float
    products: float
    ratio: float
    system: float
    memory_mb: int
    device: str
    dtype: str


class _Timed(TorchDispatchMode):
    """Times every operation, and remembers which matrix products there were."""

    def __init__(self, wait: Callable[[], None]) -> None:
        super().__init__()
        self.wait = wait
        self.seconds = defaultdict[str, float](float)
        self.products = Counter[Signature]()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if name in PRODUCTS:
            self.products[name, tuple(map(_layout, filter(_is_tensor, args)))] += 1
        start = time.perf_counter()
        out = func(*args, **(kwargs or {}))
        self.wait()
        self.seconds[name] += time.perf_counter() - start
        return out


def _is_tensor(value: object) -> bool:
    return isinstance(value, Tensor)


def _layout(x: Tensor) -> tuple[tuple[int, ...], tuple[int, ...], torch.dtype]:
    return tuple(x.shape), tuple(x.stride()), x.dtype


def profile(spec: TrainSpec) -> Profile:
    """Steps on the rows of a spec's first batches, their time and memory."""
    trainer = trainer_of(spec)
    model = trainer.model
    rows = methods.METHODS[spec.method](read_jsonl(Path(spec.train)), model.template)
    chosen = rows_of_step(0, len(rows), spec.batch_rows, spec.seed)
    chains = [chain for row in chosen for chain in rows[row]]
    batches = pack(chains, max_tokens=spec.max_batch_tokens, share=spec.share and model.shares)
    on_device = model.device.type == "cuda"
    wait = torch.cuda.synchronize if on_device else _nothing

    def step() -> float:
        start = time.perf_counter()
        for batch in batches:
            trainer.forward_backward(batch, objectives.sft)
        trainer.optim_step(spec.learning_rate, clip=spec.clip)
        wait()
        return time.perf_counter() - start

    for _ in range(WARM):
        step()
    process = psutil.Process()
    before = process.cpu_times()
    taken = statistics.median(step() for _ in range(STEPS))
    after = process.cpu_times()
    system, user = after.system - before.system, after.user - before.user
    with _Timed(wait) as timed:
        watched = step()
    alone = sum(
        count * _alone(signature, model.device, wait) for signature, count in timed.products.items()
    )
    held = torch.cuda.max_memory_allocated() if on_device else process.memory_info().rss
    return Profile(
        rows=len(chosen),
        tokens=sum(len(chain.ids) for chain in chains),
        distinct_tokens=sum(batch.size for batch in batches),
        step=taken,
        parts=_parts(timed.seconds),
        outside=watched - sum(timed.seconds.values()),
        products=alone,
        ratio=taken / alone,
        system=system / (system + user),
        memory_mb=int(held // 2**20),
        device=str(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
    )


def _parts(seconds: Mapping[str, float]) -> dict[str, float]:
    heading = {name: title for title, names in HEADINGS.items() for name in names}
    found = dict.fromkeys([*HEADINGS, REST], 0.0)
    for name, spent in seconds.items():
        found[heading.get(name, REST)] += spent
    return found


def _alone(signature: Signature, device: torch.device, wait: Callable[[], None]) -> float:
    """Median seconds of one product of this kind, its inputs resident."""
    name, layouts = signature
    product = getattr(torch.ops.aten, name)
    tensors = [_filled(*layout, device) for layout in layouts]

    def once() -> float:
        start = time.perf_counter()
        product(*tensors)
        wait()
        return time.perf_counter() - start

    once()
    return statistics.median(once() for _ in range(REPEATS))


def _filled(
    shape: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> Tensor:
    x = torch.empty_strided(shape, stride, dtype=dtype, device=device)
    return x.normal_() if 0 not in stride else torch.zeros_like(x)


def _nothing() -> None:
    """The CPU has nothing to wait for."""


def main() -> None:
    """Read a spec, print its profile."""
    found = profile(TrainSpec.read(Path(sys.argv[1])))
    sys.stdout.write(json.dumps(asdict(found)) + "\n")


if __name__ == "__main__":
    main()
