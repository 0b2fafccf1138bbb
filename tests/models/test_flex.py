"""FlexAttention over forests: uncompiled on the CPU against the dense mask, compiled on CUDA."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from tunesmith.models import attention, flex
from tunesmith.models.attention import Asked, Forest
from tunesmith.models.flex import BLOCK, TRIAL, Kind
from tunesmith.models.load import load
from tunesmith.models.template import Chain
from tunesmith.models.tree import PackedBatch, plant

Reference = Callable[[Tensor, Tensor, Tensor, PackedBatch, Asked], Tensor]

pytestmark = [
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning"),
    # Dynamo looks at every input's gradient, and drops the warning where warnings are no errors.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]

WISHES: dict[str, dict[str, Any]] = {
    "plain": {},
    "window": {"window": 40},
    "softcap": {"softcap": 2.0},
    "sinks": {"sinks": True},
    "all": {"window": 150, "softcap": 3.0, "sinks": True},
}
TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-5}


@pytest.fixture(autouse=True)
def trainable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """FlexAttention refuses gradients on the CPU, although its uncompiled form has them."""
    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda *_: None)
    # What dynamo compiled counts against one limit for the whole process.
    torch._dynamo.reset()
    flex.kernel.cache_clear()
    yield
    flex.kernel.cache_clear()


def row(*parts: tuple[int, int]) -> Chain:
    """Runs of (letter, length), the last trained; equal beginnings are shared."""
    ids = [letter for letter, length in parts for _ in range(length)]
    ids = [(letter * 31 + place) % 256 for place, letter in enumerate(ids)]
    own = min(parts[-1][1], len(ids) - 1)
    return Chain(tuple(ids), (False,) * (len(ids) - own) + (True,) * own)


FORESTS = {
    "short chain": [row((1, 30), (2, 7))],
    "chains": [row((1, 90), (2, 50)), row((3, 11)), row((4, 201))],
    "pair": [row((1, 131), (2, 60)), row((1, 131), (3, 90))],
    "nested": [
        row((1, 150), (2, 140), (3, 20)),
        row((1, 150), (2, 140), (4, 9)),
        row((1, 150), (5, 70)),
        row((6, 33)),
    ],
}


def drawn(
    batch: PackedBatch, dtype: torch.dtype, wish: dict[str, Any], device: str = "cpu"
) -> tuple[list[Tensor], Asked]:
    """Leaves q (6, T, 16), k, v (2, T, 16) and maybe sinks (6,), laid out as by a model."""
    generator = torch.Generator().manual_seed(0)

    def leaf(*shape: int) -> Tensor:
        made = torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)
        return made.requires_grad_()

    leaves = [leaf(batch.size, heads, 16) for heads in (6, 2, 2)]
    sinks = leaf(6) if wish.get("sinks") else None
    asked = Asked(0, 0.7, wish.get("window"), wish.get("softcap"), sinks)
    return [*leaves, *([] if sinks is None else [sinks])], asked


def outcome(
    compute: Callable[[Tensor, Tensor, Tensor], Tensor], leaves: list[Tensor]
) -> list[Tensor]:
    """The output and the gradient in every leaf."""
    q, k, v = (x.transpose(0, 1) for x in leaves[:3])
    out = compute(q, k, v)
    weigh = torch.linspace(-1, 2, out.numel(), dtype=out.dtype, device=out.device).view(out.shape)
    return [out, *torch.autograd.grad((out * weigh).sum(), leaves)]


def by_flex(batch: PackedBatch, asked: Asked, kernel: flex.Kernel) -> Callable[..., Tensor]:
    mask = Forest(batch).block_mask(asked.window)
    return lambda q, k, v: flex.attend(q, k, v, mask, asked, kernel)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("wish", WISHES.values(), ids=WISHES)
@pytest.mark.parametrize("forest", FORESTS.values(), ids=FORESTS)
def test_uncompiled_it_equals_a_dense_mask_with_its_gradients(
    reference: Reference, forest: list[Chain], wish: dict[str, Any], dtype: torch.dtype
) -> None:
    batch = plant(forest)
    assert batch.size % BLOCK
    leaves, asked = drawn(batch, dtype, wish)
    ours = outcome(by_flex(batch, asked, flex_attention), leaves)
    theirs = outcome(lambda q, k, v: reference(q, k, v, batch, asked), leaves)
    limit = TOLERANCE[dtype]
    torch.testing.assert_close(ours, theirs, rtol=limit, atol=limit * 10)


def test_values_may_be_of_another_width_than_keys(reference: Reference) -> None:
    batch = plant(FORESTS["pair"])
    q, k, v = (torch.randn(2, batch.size, width).double() for width in (12, 12, 8))
    asked = Asked(0, 12**-0.5)
    torch.testing.assert_close(
        by_flex(batch, asked, flex_attention)(q, k, v), reference(q, k, v, batch, asked)
    )


def counted(mask: BlockMask) -> tuple[int, int]:
    """Blocks that are masked token by token, and blocks that are taken whole."""
    assert mask.full_kv_num_blocks is not None
    return int(mask.kv_num_blocks.sum()), int(mask.full_kv_num_blocks.sum())


def same(ours: Tensor | None, theirs: Tensor | None) -> bool:
    assert ours is not None
    assert theirs is not None
    return torch.equal(ours, theirs)


@pytest.mark.parametrize("window", [None, 1, 40, 150, 300])
def test_blocks_are_those_that_all_pairs_of_tokens_give(window: int | None) -> None:
    draw = np.random.default_rng(0)
    for rows in (1, 3, 12):
        batch = plant(
            [
                row((int(root), int(shared)), (9, 150 * (n % 3) + 1), (n + 10, int(own)))
                for n, (root, shared, own) in enumerate(draw.integers(1, (3, 400, 300), (rows, 3)))
            ]
        )
        ours = Forest(batch).block_mask(window)
        theirs = create_block_mask(ours.mask_mod, 1, 1, batch.size, batch.size, "cpu")
        assert counted(ours) == counted(theirs)
        for name in ("kv_num_blocks", "full_kv_num_blocks", "q_num_blocks", "full_q_num_blocks"):
            assert same(getattr(ours, name), getattr(theirs, name)), name
        for name in ("kv_indices", "full_kv_indices", "q_indices", "full_q_indices"):
            assert same(getattr(ours, name), getattr(theirs, name)), name


def test_branches_under_one_root_leave_each_other_out() -> None:
    """A root of 4 blocks and 12 branches of one: of 136 causal blocks, 12 * 11 / 2 are empty."""
    batch = plant([row((1, 4 * BLOCK), (2 + n, BLOCK)) for n in range(12)])
    assert batch.size == 16 * BLOCK
    # Masked: each block's diagonal. Whole: the root's 3 + 2 + 1, and 4 for each branch.
    assert counted(Forest(batch).block_mask(None)) == (16, 6 + 12 * 4)
    # With a window of one block, a branch sees the end of the root and itself.
    assert counted(Forest(batch).block_mask(BLOCK)) == (16 + 3 + 12, 0)


def test_a_batch_has_one_mask_for_each_window() -> None:
    forest = Forest(plant(FORESTS["pair"]))
    assert forest.block_mask(5) is forest.block_mask(5)
    assert forest.block_mask(5) is not forest.block_mask(None)


def test_one_compiled_kernel_serves_every_length_window_and_cap(reference: Reference) -> None:
    """All of the way to the device: here plain operations take what a compiler would."""
    kernel = flex.compile_kernel("aot_eager")

    def check(name: str, window: int, softcap: float) -> None:
        batch = plant(FORESTS[name])
        wish = {"window": window, "softcap": softcap, "sinks": True}
        leaves, asked = drawn(batch, torch.float32, wish)
        ours = outcome(by_flex(batch, asked, kernel), leaves)
        theirs = outcome(lambda q, k, v: reference(q, k, v, batch, asked), leaves)
        torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-4)

    check("nested", 40, 2.0)
    with torch.compiler.set_stance("fail_on_recompile"):
        check("chains", 90, 3.0)
        check("pair", 7, 4.0)


@pytest.mark.parametrize("family", ["gemma2", "gpt_oss"])
def test_a_model_computes_the_same_by_flex_and_recomputes_it(
    tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    extra: dict[str, Any] = {"head_dim": 16, "sliding_window": 16}
    if family == "gpt_oss":
        rope = {"rope_type": "default", "rope_theta": 10000.0}
        extra |= {"num_local_experts": 4, "num_experts_per_tok": 2, "rope_parameters": rope}
    model = load(tiny(family, **extra), dtype="float32")
    batch = plant(FORESTS["nested"])
    embedding = model.module.get_input_embeddings().weight.requires_grad_(True)

    def result() -> list[Tensor]:
        logprobs = model.logprobs(batch)
        return [logprobs, *torch.autograd.grad(logprobs.sum(), embedding)]

    plain = result()
    kernel = flex.compile_kernel("aot_eager")
    calls: list[Asked] = []

    def compiled(_q: Tensor, _k: Tensor, _v: Tensor, asked: Asked) -> flex.Kernel:
        calls.append(asked)
        return kernel

    monkeypatch.setattr(attention, "_flex_kernel", compiled)
    torch.testing.assert_close(result(), plain, rtol=1e-3, atol=1e-3)
    model.recompute()
    torch.testing.assert_close(result(), plain, rtol=1e-3, atol=1e-3)
    assert calls


def kind(**changes: Any) -> Kind:
    made = Kind(
        device=torch.device("cpu"),
        dtype=torch.float32,
        heads=6,
        kv_heads=2,
        width=16,
        value_width=16,
        scale=0.7,
        windowed=True,
        capped=True,
        sunk=True,
        trained=True,
    )
    return made._replace(**changes)


@pytest.mark.parametrize(
    "changes", [{"dtype": torch.float64}, {"width": 8}, {"value_width": 12}], ids=str
)
def test_what_its_kernels_do_not_know_is_left_to_plain_operations(changes: dict[str, Any]) -> None:
    assert flex.kernel(kind(**changes)) is None


@pytest.mark.parametrize("trained", [True, False])
def test_a_kernel_is_tried_before_it_serves(monkeypatch: pytest.MonkeyPatch, trained: bool) -> None:
    """Also in a layer that is being checkpointed, whose hooks must not see the trial."""
    seen: list[tuple[torch.Size, bool]] = []

    def record(q: Tensor, *rest: Any, **options: Any) -> Any:
        seen.append((q.shape, q.requires_grad))
        return flex_attention(q, *rest, **options)

    monkeypatch.setattr(flex, "compile_kernel", lambda: record)

    def refuse(_: Any) -> Any:
        raise AssertionError("a tensor of the trial was packed")

    with torch.no_grad(), torch.autograd.graph.saved_tensors_hooks(refuse, refuse):
        first = flex.kernel(kind(trained=trained))
        assert flex.kernel(kind(trained=trained)) is first is record
    assert seen == [(torch.Size([1, 6, TRIAL, 16]), trained)]


def test_without_a_compiler_plain_operations_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise RuntimeError("Cannot find a working triton installation")

    monkeypatch.setattr(flex, "compile_kernel", lambda: fails)
    with pytest.warns(RuntimeWarning, match="plain attention is used: Cannot find a working"):
        assert flex.kernel(kind()) is None
    assert flex.kernel(kind()) is None


def test_the_cpu_never_imports_it(monkeypatch: pytest.MonkeyPatch, reference: Reference) -> None:
    monkeypatch.setitem(sys.modules, "tunesmith.models.flex", None)
    batch = plant(FORESTS["pair"])
    leaves, asked = drawn(batch, torch.float64, WISHES["all"])
    q, k, v = (x.transpose(0, 1) for x in leaves[:3])
    found = Forest(batch).attend(q, k, v, asked)
    torch.testing.assert_close(found, reference(q, k, v, batch, asked))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the compiled kernel needs CUDA")
# A compiler's advice about the device must not end its work.
@pytest.mark.filterwarnings("default")
@pytest.mark.filterwarnings("error:FlexAttention does not run here")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("wish", WISHES.values(), ids=WISHES)
def test_compiled_on_cuda_it_equals_plain_operations(
    monkeypatch: pytest.MonkeyPatch, wish: dict[str, Any], dtype: torch.dtype
) -> None:
    limit = 1e-4 if dtype == torch.float32 else 4e-2
    for forest in FORESTS.values():
        batch = plant(forest)
        leaves, asked = drawn(batch, dtype, wish, "cuda")
        tree = Forest(batch, "cuda")
        q, k, v = (x.transpose(0, 1) for x in leaves[:3])
        assert attention._flex_kernel(q, k, v, asked) is not None
        ours = outcome(lambda q, k, v, tree=tree, a=asked: tree.attend(q, k, v, a), leaves)
        with monkeypatch.context() as patch:
            patch.setattr(attention, "_flex_kernel", lambda *_: None)
            plain = outcome(lambda q, k, v, tree=tree, a=asked: tree.attend(q, k, v, a), leaves)
        for found, expected in zip(ours, plain, strict=True):
            # Rounding grows with the largest of what is added up.
            torch.testing.assert_close(
                found, expected, rtol=limit, atol=limit * float(expected.abs().max())
            )
