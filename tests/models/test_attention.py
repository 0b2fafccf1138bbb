from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tunesmith.errors import ModelError
from tunesmith.models.attention import Asked, Forest, forest_attention
from tunesmith.models.load import LoadedModel, load
from tunesmith.models.template import Chain
from tunesmith.models.tree import PackedBatch, plant

FAMILIES = (
    *("llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "mistral", "phi3", "gpt_neox"),
    *("granite", "cohere2", "olmo3", "gpt_oss"),
)
SINGLE = {"gpt_oss"}
"""Families whose experts compute in float32 at most."""


Reference = Callable[[Tensor, Tensor, Tensor, PackedBatch, Asked], Tensor]


def chains(seed: int, *, rows: int, roots: tuple[int, ...] = (40, 20)) -> list[Chain]:
    """Rows under a root, some of them under a second one below it; lengths very uneven."""
    draw = np.random.default_rng(seed)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(int(token) for token in draw.integers(0, 256, count))

    first, second = (ids(count) for count in roots)
    out: list[Chain] = []
    for row in range(rows):
        prompt = first * (row % 5 != 4) + second * (row % 2) + ids(int(draw.integers(1, 30)))
        answer = ids(int(draw.integers(1, 8)))
        out.append(Chain(prompt + answer, (False,) * len(prompt) + (True,) * len(answer)))
    return out


def path_of(batch: PackedBatch, branch: int) -> list[int]:
    place = int(np.flatnonzero(batch.branch == branch)[-1])
    path: list[int] = []
    while place >= 0:
        path.append(place)
        place = int(batch.parent[place])
    return path[::-1]


def logits(model: LoadedModel, batch: PackedBatch) -> Tensor:
    with torch.no_grad():
        return model.head(model.forest(batch))


@pytest.mark.parametrize(
    "wish",
    [{}, {"window": 9}, {"softcap": 2.0}, {"sinks": True}, {"window": 5, "softcap": 3.0}],
    ids=["plain", "window", "softcap", "sinks", "window+softcap"],
)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 1000), rows=st.integers(1, 9), grouped=st.booleans())
def test_segments_equal_a_dense_mask_with_their_gradients(
    reference: Reference, wish: dict[str, object], seed: int, rows: int, grouped: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    batch = plant(chains(seed, rows=rows))
    heads, kv_heads = 4, 2 if grouped else 4

    def leaf(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    q, k, v = (leaf(count, batch.size, 12) for count in (heads, kv_heads, kv_heads))
    sinks = leaf(heads) if wish.get("sinks") else None
    asked = Asked(0, 0.7, wish.get("window"), wish.get("softcap"), sinks)  # pyright: ignore
    weigh = torch.randn(q.shape, generator=generator, dtype=torch.float64)
    ours, theirs = Forest(batch).attend(q, k, v, asked), reference(q, k, v, batch, asked)
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)
    inputs = [leaf for leaf in (q, k, v, sinks) if leaf is not None]
    torch.testing.assert_close(
        torch.autograd.grad((ours * weigh).sum(), inputs),
        torch.autograd.grad((theirs * weigh).sum(), inputs),
        rtol=1e-10,
        atol=1e-10,
    )


def test_values_may_be_of_another_width_than_keys(reference: Reference) -> None:
    batch = plant(chains(3, rows=4))
    q, k, v = (torch.randn(2, batch.size, width).double() for width in (12, 12, 8))
    asked = Asked(0, 12**-0.5)
    torch.testing.assert_close(
        Forest(batch).attend(q, k, v, asked), reference(q, k, v, batch, asked)
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_trap_37_forest_is_its_separate_rows_beyond_the_window(
    narrow: Callable[[str], Path], family: str
) -> None:
    single = family in SINGLE
    model = load(narrow(family), dtype="float32" if single else "float64")
    rows = chains(7, rows=6)
    assert max(len(row.ids) for row in rows) > 4 * 16
    batch = plant(rows)
    assert batch.size < sum(len(row.ids) for row in rows)
    together = logits(model, batch)
    model.module.set_attn_implementation("eager")
    for index, row in enumerate(rows):
        with torch.no_grad():
            own = model.module(input_ids=torch.tensor([row.ids]), use_cache=False).logits[0]
        # Eager attention rounds its softmax to float32 even in a float64 model.
        limit = 2e-4 if single else 2e-5
        torch.testing.assert_close(together[path_of(batch, index)], own, rtol=limit, atol=limit)


def test_trap_37_a_batch_stays_where_rotary_factors_do_not_change(longrope: Path) -> None:
    """Rows up to the threshold are each what they are alone; one beyond it changes no other."""
    model = load(longrope, dtype="float64")
    assert model.context == 64
    root = tuple(range(30))
    rows = [
        Chain(root + tuple(range(100, 100 + own)), (False,) * 30 + (True,) * own)
        for own in (34, 4, 9)
    ]
    batch = plant(rows)
    assert batch.size == 30 + 34 + 4 + 9
    together = logits(model, batch)
    long = Chain((*rows[0].ids, 7), (*rows[0].trained, True))
    for batch_of_both in (plant([*rows, long]), plant([*rows, long], share=False)):
        with pytest.raises(ModelError, match=r"a row of 65 tokens; expected at most 64"):
            model.forest(batch_of_both)
    model.module.set_attn_implementation("eager")

    def own(row: Chain) -> Tensor:
        with torch.no_grad():
            return model.module(input_ids=torch.tensor([row.ids]), use_cache=False).logits[0]

    for index, row in enumerate(rows):
        place = path_of(batch, index)
        torch.testing.assert_close(together[place], own(row), rtol=2e-5, atol=2e-5)
    # The factors beyond the threshold are others: this model could tell.
    assert (own(long)[:-1] - own(rows[0])).abs().max() > 0.1


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2"])
def test_trap_08_packed_rows_equal_unpacked_rows(
    narrow: Callable[[str], Path], family: str
) -> None:
    model = load(narrow(family), dtype="float64")
    rows = chains(1, rows=7)
    with torch.no_grad():
        alone = torch.cat([model.logprobs(plant([row])) for row in rows])
        side_by_side = model.logprobs(plant(rows, share=False))
        batch = plant(rows)
        shared = model.logprobs(batch)
    torch.testing.assert_close(side_by_side, alone, rtol=0, atol=1e-12)
    order = torch.from_numpy(np.argsort(batch.branch[batch.trained], kind="stable"))
    torch.testing.assert_close(shared[order], alone, rtol=0, atol=1e-12)


def test_trap_08_a_row_does_not_feel_what_changes_in_another(tiny: Callable[..., Path]) -> None:
    model = load(tiny(), dtype="float64")
    rows = chains(2, rows=4, roots=(60, 20))
    changed = Chain(tuple(255 - token for token in rows[0].ids), rows[0].trained)
    with torch.no_grad():
        before = model.logprobs(plant(rows, share=False))[rows[0].trained_count :]
        after = model.logprobs(plant([changed, *rows[1:]], share=False))[rows[0].trained_count :]
        first = model.logprobs(plant([changed], share=False))
        assert not torch.equal(first, model.logprobs(plant([rows[0]], share=False)))
    assert torch.equal(before, after)


def test_trap_08_both_rules_of_the_forest_are_needed(tiny: Callable[..., Path]) -> None:
    """A causal mask instead of the intervals, or logits at j-1 instead of parent[j]: both differ."""
    model = load(tiny(), dtype="float64")
    # One prompt with several answers: trained tokens stand right behind the fork.
    prompt = chains(4, rows=1)[0].ids
    answers = [tuple(range(first, first + 6)) for first in (10, 70, 130)]
    mask = (False,) * len(prompt) + (True,) * 6
    batch = plant([Chain(prompt + answer, mask) for answer in answers])
    size = batch.size
    causal = PackedBatch(
        batch.ids,
        np.arange(size) - 1,
        np.full(size, size),
        batch.depth,
        batch.weight,
        np.zeros(size, dtype=np.int64),
    )
    trained = torch.from_numpy(batch.trained)
    targets = torch.from_numpy(batch.ids)[trained]
    with torch.no_grad():
        right = model.logprobs(batch)
        ids, tree = torch.from_numpy(batch.ids), Forest(causal)
        tree.depth = torch.from_numpy(batch.depth)
        leaky = model.head(model.hidden(ids, tree.depth, tree)).log_softmax(-1)
        leaky = leaky[torch.from_numpy(batch.parent)[trained], targets]
        shifted = model.head(model.forest(batch)).log_softmax(-1)[trained - 1, targets]
    assert (right - leaky).abs().max() > 0.5
    assert (right - shifted).abs().max() > 0.5


def test_trap_38_attention_without_the_structure_is_refused() -> None:
    one = torch.zeros(1, 2, 3, 4)
    with pytest.raises(ModelError, match="dropped the batch's structure"):
        forest_attention(nn.Identity(), one, one, one, None)


def test_trap_37_attention_dropout_is_refused_by_name() -> None:
    one = torch.zeros(1, 2, 3, 4)
    tree = Forest(plant(chains(0, rows=1)))
    with pytest.raises(ModelError, match=r"attention dropout 0\.1"):
        forest_attention(nn.Identity(), one, one, one, None, dropout=0.1, tree=tree)


def test_the_structure_survives_recomputation_of_activations(tiny: Callable[..., Path]) -> None:
    model = load(tiny(), dtype="float64")
    batch = plant(chains(5, rows=3))
    embedding = model.module.get_input_embeddings().weight
    embedding.requires_grad_(True)

    def gradient() -> Tensor:
        (grad,) = torch.autograd.grad(model.logprobs(batch).sum(), embedding)
        return grad

    plain = gradient()
    model.module.activation_checkpointing_enable()
    model.module.train()
    torch.testing.assert_close(gradient(), plain, rtol=0, atol=1e-12)
