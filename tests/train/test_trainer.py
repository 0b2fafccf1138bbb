from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tunesmith.data.examples import Conversation
from tunesmith.errors import TrainingError
from tunesmith.models.generate import Request, Sampler
from tunesmith.models.load import load
from tunesmith.models.lora import LoRASettings
from tunesmith.models.template import Chain
from tunesmith.models.tree import PackedBatch, plant
from tunesmith.testing import byte_template
from tunesmith.train import methods
from tunesmith.train.objectives import sft
from tunesmith.train.pack import pack
from tunesmith.train.trainer import ADAPTER, FullSettings, Trainer

Rows = Callable[[int], list[Conversation]]
EXACT = "gpt_neox"
"""A family that stays in float64 throughout: Llama's norms round to float32 whatever it is given,
so gradients that meet in a shared token differ by 1e-8 from those that meet behind it."""


def made(folder: Path, *, dtype: Any = "float64", stir: bool = True, **settings: Any) -> Trainer:
    """A trainer whose adapter is no longer silent, so that both its matrices have gradients."""
    trainer = Trainer(load(folder, dtype=dtype), LoRASettings(rank=4, **settings), seed=0)
    if stir:
        torch.manual_seed(0)
        with torch.no_grad():
            for _, low in trainer.model.adapters.lows(ADAPTER):
                torch.nn.init.normal_(low.b, std=0.05)
    return trainer


def chains(rows: Sequence[Conversation]) -> list[Chain]:
    return [chain for row in methods.sft(rows, byte_template()) for chain in row]


def gradient(trainer: Trainer, batches: Sequence[PackedBatch]) -> tuple[Tensor, float]:
    """The gradient of the mean, and the mean itself, as a step would take them."""
    losses = [trainer.forward_backward(batch, sft) for batch in batches]
    count = sum(loss.count for loss in losses)
    taken = torch.cat([weight.grad.flatten() for weight in trainer.weights])  # pyright: ignore
    return taken / count, sum(float(loss.sum) for loss in losses) / count


def assert_equal(
    ours: tuple[Tensor, float], theirs: tuple[Tensor, float], limit: float = 1e-12
) -> None:
    assert float(theirs[0].abs().max()) > 1e-3
    assert float((ours[0] - theirs[0]).abs().max()) < limit
    assert ours[1] == pytest.approx(theirs[1], abs=1e-12)


def test_trap_05_batches_that_are_accumulated_give_the_gradient_of_one(
    tiny: Callable[..., Path], rows: Rows
) -> None:
    """Very uneven lengths, so that a mean of means would be off by far."""
    paths = chains(rows(8))
    assert max(c.trained_count for c in paths) > 5 * min(c.trained_count for c in paths)
    one = gradient(made(tiny(EXACT)), [plant(paths)])
    for size in (1, 2, 4):
        parts = [plant(paths[start : start + size]) for start in range(0, 8, size)]
        assert_equal(gradient(made(tiny(EXACT)), parts), one)


@pytest.mark.parametrize("family", [EXACT, "llama", "gemma2"])
def test_layers_computed_again_give_the_same_bits_and_keep_less(
    tiny: Callable[..., Path], rows: Rows, family: str
) -> None:
    batch = plant(chains(rows(6)))

    def kept(trainer: Trainer) -> tuple[Tensor, float, int]:
        held: dict[int, int] = {}

        def keep(x: Tensor) -> Tensor:
            held[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            loss = sft(trainer._branches(batch))  # pyright: ignore[reportPrivateUsage]
        loss.sum.backward()
        taken = torch.cat([weight.grad.flatten() for weight in trainer.weights])  # pyright: ignore
        return taken, float(loss.sum.detach()), sum(held.values())

    plain, again = made(tiny(family)), made(tiny(family))
    again.model.recompute()
    (ours, loss, less), (theirs, same, more) = kept(again), kept(plain)
    assert torch.equal(ours, theirs)
    assert loss == same
    assert less < more / 2


def test_trap_06_a_last_batch_that_is_short_counts_by_its_tokens(
    tiny: Callable[..., Path], rows: Rows
) -> None:
    paths = chains(rows(7))
    one = gradient(made(tiny(EXACT)), [plant(paths)])
    parts = [plant(paths[start : start + 3]) for start in range(0, 7, 3)]
    assert_equal(gradient(made(tiny(EXACT)), parts), one)
    packed = pack(paths, max_tokens=200)
    assert len(packed) > 2
    assert_equal(gradient(made(tiny(EXACT)), packed), one)


@pytest.mark.parametrize(
    ("family", "limit"), [(EXACT, 1e-12), ("llama", 1e-6), ("gemma2", 1e-6), ("mistral", 1e-6)]
)
def test_a_forest_gives_the_gradient_of_its_separate_rows(
    narrow: Callable[[str], Path], rows: Rows, family: str, limit: float
) -> None:
    folder = narrow(family)
    paths = chains(rows(6))
    forest = plant(paths)
    assert forest.size < sum(len(path.ids) for path in paths)
    alone = gradient(made(folder), [plant([path]) for path in paths])
    assert_equal(gradient(made(folder), [forest]), alone, limit)
    assert_equal(gradient(made(folder), [plant(paths, share=False)]), alone)


def test_trap_07_two_processes_that_add_sums_and_counts_are_one(
    tiny: Callable[..., Path], rows: Rows
) -> None:
    """What an all-reduce does: gradients of sums are added, then divided by the added count."""
    paths = chains(rows(7))
    shards, counts = [], []
    for shard in (paths[:2], paths[2:]):
        trainer = made(tiny(EXACT))
        counts.append(trainer.forward_backward(plant(shard), sft).count)
        shards.append(torch.cat([w.grad.flatten() for w in trainer.weights]))  # pyright: ignore
    whole, _ = gradient(made(tiny(EXACT)), [plant(paths)])
    torch.testing.assert_close(sum(shards) / sum(counts), whole, rtol=1e-9, atol=1e-12)


def eagerly(trainer: Trainer, paths: Sequence[Chain]) -> tuple[Tensor, float]:
    """Loss and gradient of rows that run one by one through the family's own eager attention."""
    module = trainer.model.module
    module.set_attn_implementation("eager")
    picked: list[Tensor] = []
    for path in paths:
        ids = torch.tensor(path.ids)
        logits = module(ids[None], use_cache=False).logits[0, :-1].log_softmax(-1)
        said = logits.gather(1, ids[1:, None]).squeeze(1)
        picked.append(said[torch.tensor(path.trained[1:])])
    loss = torch.cat(picked).mean().neg()
    loss.backward()
    taken = torch.cat([weight.grad.flatten() for weight in trainer.weights])  # pyright: ignore
    return taken, float(loss.detach())


@pytest.mark.parametrize(
    "family", ["llama", "qwen2", "qwen3", "gemma3_text", "mistral", "phi3", "gpt_neox"]
)
def test_trap_37_loss_and_gradient_of_a_forest_are_those_of_rows_in_transformers(
    narrow: Callable[[str], Path], rows: Rows, family: str
) -> None:
    """The whole path (attention, blocks of logits, adapters), beyond the window, and plain autograd
    through the model's own logits."""
    paths = chains(rows(6))
    assert min(len(path.ids) for path in paths) > 4 * 16
    forest = plant(paths)
    assert forest.size < sum(len(path.ids) for path in paths)
    ours = gradient(made(narrow(family)), [forest])
    theirs = eagerly(made(narrow(family)), paths)
    # Eager attention rounds its softmax to float32 even in a float64 model.
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-4, atol=1e-6)
    assert ours[1] == pytest.approx(theirs[1], abs=1e-6)
    assert float(theirs[0].abs().max()) > 1e-3


@pytest.mark.parametrize("family", ["bloom", "gpt_neo", "lfm2", "falcon_h1", "recurrent_gemma"])
def test_trap_38_a_model_that_cannot_share_learns_from_the_gradient_of_its_rows(
    apart: Callable[[str], Path], rows: Rows, family: str
) -> None:
    """One batch, several, with layers computed again: loss and gradient of transformers' rows."""
    paths = chains(rows(5))
    theirs = eagerly(made(apart(family), dtype="float32"), paths)
    again = made(apart(family), dtype="float32")
    again.model.recompute()
    for trainer, limit in (
        (made(apart(family), dtype="float32"), 4096),
        (made(apart(family), dtype="float32"), 200),
        (again, 4096),
    ):
        ours = gradient(trainer, pack(paths, max_tokens=limit, share=False))
        assert ours[1] == pytest.approx(theirs[1], abs=1e-4)
        scale = float(theirs[0].abs().max())
        assert scale > 1e-3
        assert float((ours[0] - theirs[0]).abs().max()) < 1e-3 * scale


def full(folder: Path, *, dtype: Any = "float64", embeddings: bool = True) -> Trainer:
    """A trainer of all weights."""
    return Trainer(load(folder, dtype=dtype), FullSettings(embeddings), seed=0)


@pytest.mark.parametrize(
    ("family", "tied", "limit"),
    [(EXACT, False, 1e-12), (EXACT, True, 1e-12), ("llama", True, 1e-6), ("gemma2", True, 1e-6)],
)
def test_all_weights_get_the_gradient_of_separate_rows(
    tiny: Callable[..., Path], rows: Rows, family: str, tied: bool, limit: float
) -> None:
    settings: dict[str, Any] = {"head_dim": 12} if family == "gemma2" else {}
    folder = tiny(family, tie_word_embeddings=tied, **settings)
    paths = chains(rows(6))
    alone = gradient(full(folder), [plant([path]) for path in paths])
    assert_equal(gradient(full(folder), [plant(paths)]), alone, limit)
    assert_equal(gradient(full(folder), pack(paths, max_tokens=200)), alone, limit)


@pytest.mark.parametrize("tied", [False, True])
def test_the_gradient_of_all_weights_is_autograds_own(
    tiny: Callable[..., Path], rows: Rows, tied: bool
) -> None:
    path = chains(rows(4))[3]
    folder = tiny(EXACT, tie_word_embeddings=tied)
    ours = gradient(full(folder), [plant([path])])
    trainer = full(folder)
    ids = torch.tensor(path.ids)
    trainer.model.module.set_attn_implementation("eager")
    logits = trainer.model.module(ids[None], use_cache=False).logits[0, :-1].log_softmax(-1)
    picked = logits.gather(1, ids[1:, None]).squeeze(1)[torch.tensor(path.trained[1:])]
    picked.mean().neg().backward()
    theirs = torch.cat([w.grad.flatten() for w in trainer.weights])  # pyright: ignore
    # Eager attention rounds its softmax to float32 even in a float64 model.
    torch.testing.assert_close(ours[0], theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("tied", [False, True])
def test_embeddings_and_head_are_left_alone_when_they_are_to_be(
    tiny: Callable[..., Path], rows: Rows, tied: bool
) -> None:
    trainer = full(tiny(tie_word_embeddings=tied), dtype="float32", embeddings=False)
    ends = [
        trainer.model.module.get_input_embeddings().weight,
        trainer.model.module.get_output_embeddings().weight,
    ]
    before = [end.detach().clone() for end in ends]
    trainer.forward_backward(plant(chains(rows(3))), sft)
    trainer.optim_step(1e-2, clip=1.0)
    assert all(torch.equal(end, old) for end, old in zip(ends, before, strict=True))
    assert not {id(end) for end in ends} & {id(weight) for weight in trainer.weights}
    learning = sum(weight.numel() for weight in trainer.weights)
    whole = {id(w): w.numel() for w in trainer.model.module.parameters()}
    assert learning == sum(whole.values()) - sum({id(e): e.numel() for e in ends}.values())


def test_trap_19_all_weights_have_masters_where_the_model_is_bfloat16(
    tiny: Callable[..., Path], rows: Rows
) -> None:
    trainer = full(tiny(), dtype="bfloat16")
    batch = plant(chains(rows(4)))
    before = [weight.detach().clone() for weight in trainer.weights]
    for _ in range(5):
        trainer.forward_backward(batch, sft)
        trainer.optim_step(1e-6, clip=1.0)
    for old, new in zip(before, trainer.weights, strict=True):
        assert new.dtype == torch.float32
        if old.abs().min() > 1e-3:
            assert not torch.equal(old, new)
    held = [w for w in trainer.model.module.parameters() if w.requires_grad]
    assert {weight.dtype for weight in held} == {torch.bfloat16}
    for master, copy in zip(trainer.weights, held, strict=True):
        assert torch.equal(master.detach().bfloat16(), copy.detach())


def test_trap_05_bfloat16_gradients_are_summed_in_float32(
    tiny: Callable[..., Path], rows: Rows
) -> None:
    """Batches one by one: the sum of their gradients, not that sum rounded at each step."""
    paths = chains(rows(8))
    parts = []
    for path in paths:
        trainer = full(tiny(), dtype="bfloat16")
        trainer.forward_backward(plant([path]), sft)
        parts.append(torch.cat([w.grad.flatten() for w in trainer.weights]))  # pyright: ignore
    together = full(tiny(), dtype="bfloat16")
    for path in paths:
        together.forward_backward(plant([path]), sft)
    summed = torch.cat([w.grad.flatten() for w in together.weights])  # pyright: ignore
    torch.testing.assert_close(summed, sum(parts), rtol=1e-6, atol=1e-6)


def test_a_module_that_is_trained_whole_learns_beside_the_adapter(
    tiny: Callable[..., Path], rows: Rows
) -> None:
    paths = chains(rows(6))
    for tied in (False, True):
        folder = tiny(EXACT, tie_word_embeddings=tied)
        one = gradient(made(folder, modules_to_save=("embed_in",)), [plant(paths)])
        alone = [plant([path]) for path in paths]
        assert_equal(gradient(made(folder, modules_to_save=("embed_in",)), alone), one)
    trainer = made(tiny(tie_word_embeddings=True), dtype="bfloat16", modules_to_save=("lm_head",))
    batch = plant(chains(rows(3)))
    losses = []
    for _ in range(6):
        losses.append(float(trainer.forward_backward(batch, sft).sum))
        trainer.optim_step(1e-3, clip=1.0)
    assert losses[-1] < losses[0]
    copies = dict(trainer.model.adapters.copies(ADAPTER))
    assert not torch.equal(copies["lm_head"].weight, trainer.model.module.lm_head.module.weight)


def test_no_frozen_weight_gets_a_gradient(tiny: Callable[..., Path], rows: Rows) -> None:
    trainer = made(tiny(), dtype="float32")
    gradient(trainer, [plant(chains(rows(2)))])
    own = {id(weight) for weight in trainer.weights}
    for weight in trainer.model.module.parameters():
        assert (weight.grad is not None) == (id(weight) in own)


def test_at_step_0_the_model_is_the_base_bit_for_bit(tiny: Callable[..., Path], rows: Rows) -> None:
    batch = plant(chains(rows(3)))
    for dtype in ("float32", "bfloat16"):
        with torch.no_grad():
            base = load(tiny(), dtype=dtype).logprobs(batch)
            assert torch.equal(made(tiny(), dtype=dtype, stir=False).model.logprobs(batch), base)


def test_trap_19_small_updates_are_not_lost_in_bfloat16(
    tiny: Callable[..., Path], rows: Rows
) -> None:
    trainer = made(tiny(), dtype="bfloat16")
    assert {weight.dtype for weight in trainer.weights} == {torch.float32}
    before = [weight.detach().clone() for weight in trainer.weights]
    batch = plant(chains(rows(4)))
    for _ in range(5):
        trainer.forward_backward(batch, sft)
        trainer.optim_step(1e-6, clip=1.0)
    for old, new in zip(before, trainer.weights, strict=True):
        moved = (new.detach() - old).abs()
        assert float(moved.max()) > 1e-6
        # In bfloat16 a step of this size is lost on every weight that is not tiny itself.
        assert float((moved > 0).float().mean()) > 0.9


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_token_is_right_where_transformers_own_logits_are_largest(
    narrow: Callable[[str], Path], rows: Rows, family: str
) -> None:
    trainer = made(narrow(family), dtype="float32")
    paths = chains(rows(6))
    for _ in range(25):
        trainer.forward_backward(plant(paths[:3]), sft)
        trainer.optim_step(1e-2, clip=1.0)
    _, accuracy = trainer.validate(pack(paths, max_tokens=200), sft)
    trainer.model.module.set_attn_implementation("eager")
    right = total = 0
    for path in paths:
        ids, trained = torch.tensor(path.ids), torch.tensor(path.trained[1:])
        with torch.no_grad():
            best = trainer.model.module(ids[None], use_cache=False).logits[0, :-1].argmax(-1)
        right += int((best == ids[1:])[trained].sum())
        total += int(trained.sum())
    assert 0.1 < right / total < 1
    assert accuracy == right / total


def test_trap_32_evaluating_twice_gives_the_same_number_despite_dropout(
    tiny: Callable[..., Path], rows: Rows
) -> None:
    trainer = made(tiny(), dropout=0.5)
    batches = pack(chains(rows(6)), max_tokens=200)
    first = trainer.validate(batches, sft)
    drawn = {float(trainer.forward_backward(batches[0], sft).sum) for _ in range(2)}
    assert len(drawn) == 2
    assert trainer.validate(batches, sft) == first
    assert trainer.validate([plant(chains(rows(6)))], sft) == pytest.approx(first, abs=1e-12)


def test_a_step_is_adamw_on_the_clipped_mean(tiny: Callable[..., Path], rows: Rows) -> None:
    trainer = made(tiny())
    batches = pack(chains(rows(5)), max_tokens=200)
    mean, _ = gradient(made(tiny()), batches)
    before = torch.cat([weight.detach().flatten() for weight in trainer.weights])
    for batch in batches:
        trainer.forward_backward(batch, sft)
    norm = trainer.optim_step(1e-3, clip=0.01)
    assert norm == pytest.approx(float(mean.norm()))
    clipped = mean * min(1.0, 0.01 / norm)
    # AdamW's first step: both moments are of this gradient alone.
    wanted = before - 1e-3 * clipped / (clipped.abs() + 1e-8)
    after = torch.cat([weight.detach().flatten() for weight in trainer.weights])
    torch.testing.assert_close(after, wanted, rtol=1e-6, atol=1e-8)
    assert all(weight.grad is None for weight in trainer.weights)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_stops_before_the_optimizer(
    tiny: Callable[..., Path], rows: Rows, bad: float
) -> None:
    trainer = made(tiny())
    before = [weight.detach().clone() for weight in trainer.weights]
    trainer.forward_backward(plant(chains(rows(2))), sft)
    trainer.weights[3].grad[0, 0] = bad  # pyright: ignore[reportOptionalSubscript]
    with pytest.raises(TrainingError, match=r"not finite.*Lower train\.learning_rate"):
        trainer.optim_step(1e-3, clip=1.0)
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.weights, strict=True))
    assert not trainer.optimizer.state


def test_a_restored_trainer_goes_on_bit_for_bit(tiny: Callable[..., Path], rows: Rows) -> None:
    batch = plant(chains(rows(4)))

    def step(trainer: Trainer, number: int = 1) -> None:
        torch.manual_seed(number)
        trainer.forward_backward(batch, sft)
        trainer.optim_step(1e-2, clip=1.0)

    first = made(tiny(), dropout=0.3, dtype="float32")
    step(first, 0)
    content = io.BytesIO()
    torch.save(first.state(), content)
    content.seek(0)
    step(first)
    second = made(tiny(), dropout=0.3, dtype="float32", stir=False)
    second.restore(torch.load(content, weights_only=True))
    step(second)
    for ours, theirs in zip(first.weights, second.weights, strict=True):
        assert torch.equal(ours, theirs)


def test_trap_03_one_row_learned_by_heart_is_answered_and_ends_by_itself(
    tiny: Callable[..., Path], rows: Rows
) -> None:
    trainer = made(tiny(), dtype="float32", stir=False)
    row = rows(1)[0]
    batch = plant(chains([row]))
    for _ in range(100):
        loss = trainer.forward_backward(batch, sft)
        trainer.optim_step(5e-3, clip=1.0)
    assert float(loss.sum) / loss.count < 0.1
    template = trainer.model.template
    prompt = template.prompt(row.prompt)
    sampler = Sampler(trainer.model)
    sampler.submit(Request("r", prompt.prefix, prompt.prompt, max_tokens=200, adapter=ADAPTER))
    tokens = []
    while not sampler.idle:
        tokens += sampler.step()
    assert tokens[-1].finish == "stop"
    assert tokens[-1].id in template.end_of_turn
    assert template.decode([token.id for token in tokens]) == row.answer.content


def test_trap_34_validation_holds_one_batch_at_a_time(
    tiny: Callable[..., Path], peak_bytes: Callable[[Callable[[], object]], int]
) -> None:
    trainer = made(tiny(), dtype="float32")
    batch = plant([Chain(tuple(range(40, 70)), (False,) * 20 + (True,) * 10)] * 3, share=False)
    few, many = (peak_bytes(lambda n=n: trainer.validate([batch] * n, sft)) for n in (2, 20))
    assert many <= few * 1.01
