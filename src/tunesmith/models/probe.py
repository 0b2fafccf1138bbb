"""What a model can do, told from numbers on its real weights and not from a list of families.

Either a forest is the same as its rows alone, or the rows are computed by themselves (trap 38). An
adapter is of use only beside a layer that is called.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from tunesmith.errors import ModelError
from tunesmith.models import attention
from tunesmith.models.rows import Past, Rows
from tunesmith.models.template import Chain
from tunesmith.models.tree import PackedBatch, plant

ATTENTION_LAYERS = {"full_attention", "sliding_attention"}
ROOT = 40
"""Tokens that the probe's two rows have in common: enough to be shared."""
TAILS = (5, 9)
FAILURES = (RuntimeError, AttributeError, TypeError, ValueError, KeyError, IndexError)
"""What a model raises that is called otherwise than it wants to be."""


class Probed(Protocol):
    """What is asked of `load.LoadedModel`, which says more."""

    module: Any

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        ...

    @property
    def config(self) -> Any:
        """The text model's configuration."""
        ...

    def forest(self, batch: PackedBatch) -> Tensor:
        """Last hidden states (T, width)."""
        ...

    def head(self, hidden: Tensor) -> Tensor:
        """Logits (N, vocabulary)."""
        ...


def unshared(model: Probed) -> str | None:
    """Why a forest would not be the same as its rows alone; None where it is.

    Rows alone against the model's own attention, then the forest against the rows, then one branch's
    gradient in the other.
    """
    if model.config._attn_implementation != attention.NAME:
        return _said(model, "knows no attention but its own")
    kinds = set(getattr(model.config, "layer_types", None) or ()) - ATTENTION_LAYERS
    if kinds:
        return _said(model, f"has layers of {', '.join(sorted(kinds))}")
    chains = _chains(model)
    batch = plant(chains)
    try:
        with torch.no_grad():
            alone = [model.head(model.forest(plant([chain]))) for chain in chains]
            together = model.head(model.forest(batch))
        (seen,) = _reach(model, model.forest, batch, batch.branch == 1)
        model.module.set_attn_implementation("eager")
        own = [_logits(model, chain) for chain in chains]
        model.module.set_attn_implementation(attention.NAME)
    except ModelError as error:
        return _said(model, f"does not take a forest: {error.found}")
    except FAILURES as error:
        return _said(model, f"does not take a forest: {error}")
    for index, (logits, wanted) in enumerate(zip(alone, own, strict=True)):
        path = _path_to_leaf(batch, index)
        if _far(logits, wanted):
            return _said(model, "gives other logits with our attention than with its own")
        if _far(together[path[ROOT:]], logits[ROOT:]) or _far(together[path], logits):
            return _said(model, "computes a row differently when it shares tokens")
    if seen[: batch.size][torch.from_numpy(batch.branch == 0)].any():
        return _said(model, "lets one row of a batch see another")
    return None


def by_rows(model: Probed, why: str) -> Rows:
    """How a model that cannot share is computed: rows padded to one length, or one at a time.

    Raises:
        ModelError: rows are not what they are alone even so, or a token sees what comes after it.
    """
    module = model.module
    # The model's own choice. A name that it does not know would make it drop the padding's mask.
    module.config._attn_implementation = module.get_correct_attn_implementation(None)
    chains = _chains(model)
    try:
        own = [_logits(model, chain) for chain in chains]
    except FAILURES as error:
        raise _unfit(model, f"does not run: {error}") from None
    wrong = ""
    for rows in (Rows(module, why, padded=True), Rows(module, why, padded=False)):
        wrong = _wrong(model, rows, chains, own)
        if not wrong:
            caches = replace(rows, cached=True)
            return caches if _continues(model, caches, chains[0], own[0]) else rows
    raise _unfit(model, f"{wrong}, and sharing is no way out: {why}")


def check_layers(model: Probed) -> None:
    """Refuse a model that computes with a linear layer's weight and never calls the layer: an adapter
    beside it would be trained, saved and silent.

    Raises:
        ModelError: there are such layers.
    """
    head = model.module.get_output_embeddings()
    left = {
        name: layer
        for name, layer in model.module.named_modules()
        if isinstance(layer, nn.Linear) and layer is not head
    }
    names = {layer: name for name, layer in left.items()}

    def called(layer: nn.Module, _inputs: Any, _out: Any) -> None:
        left.pop(names[layer], None)  # pyright: ignore[reportArgumentType]

    hooks = [layer.register_forward_hook(called) for layer in names]
    batch = plant(_chains(model), share=False)
    try:
        with torch.no_grad():
            model.forest(batch)
    finally:
        for hook in hooks:
            hook.remove()
    # 4-bit weights have no gradient of their own; their layers are only ever called.
    left = {name: layer for name, layer in left.items() if layer.weight.is_floating_point()}
    used = _matter(left, lambda: model.forest(batch)) if left else []
    if used:
        raise _unfit(
            model,
            f"computes with {len(used)} linear layers without calling them, the first {used[0]}",
            expected="linear layers that are called, so that an adapter beside them has an effect",
        )


@torch.enable_grad()
def _matter(layers: Mapping[str, nn.Linear], run: Callable[[], Tensor]) -> list[str]:
    """Which of some layers that are not called have a part in what comes out; experts that no token
    was sent to have none.
    """
    weights = [layer.weight.requires_grad_() for layer in layers.values()]
    try:
        out = run()
        if not out.requires_grad:
            return []
        # Not made where there is none: they may be most of the model.
        grads: list[Tensor | None] = [
            *torch.autograd.grad(_weighed(out), weights, allow_unused=True)
        ]
    finally:
        for weight in weights:
            weight.requires_grad = False
    return [
        name
        for name, grad in zip(layers, grads, strict=True)
        if grad is not None and bool(grad.any())
    ]


def _wrong(model: Probed, rows: Rows, chains: list[Chain], own: list[Tensor]) -> str:
    """What is wrong with rows computed this way; empty where nothing is."""
    batch = plant(chains, share=False)

    def hidden(batch: PackedBatch) -> Tensor:
        return rows.hidden(batch, model.device)

    first = np.arange(batch.size) < len(chains[0].ids) // 2
    try:
        with torch.no_grad():
            logits = model.head(hidden(batch)).split([len(chain.ids) for chain in chains])
        seen = sum(int(mask.sum()) for mask in _reach(model, hidden, batch, first))
    except FAILURES as error:
        return f"does not run: {error}"
    if any(_far(found, wanted) for found, wanted in zip(logits, own, strict=True)):
        return "computes a row differently beside another"
    # Each of them sees itself: more than their number are others.
    return "lets a token see what comes after it, or another row" if seen > first.sum() else ""


@torch.no_grad()
def _continues(model: Probed, rows: Rows, chain: Chain, own: Tensor) -> bool:
    """Whether token after token, from what is kept, is the same as the whole row."""
    past: Past = {}
    parts: list[Tensor] = []
    try:
        for ids in (chain.ids[:ROOT], *((token,) for token in chain.ids[ROOT:])):
            hidden, past = rows.read(ids, past, model.device)
            parts.append(hidden)
    except FAILURES:
        return False
    return bool(past) and not _far(model.head(torch.cat(parts)), own)


@torch.enable_grad()
def _reach(
    model: Probed,
    hidden: Callable[[PackedBatch], Tensor],
    batch: PackedBatch,
    mine: np.ndarray[Any, Any],
) -> list[Tensor]:
    """Which embedded tokens the tokens `mine` (T,) have a gradient in, flat, one a forward pass.

    Exactly none where nothing joins them, in every precision; small leaks, as of a convolution's
    state, are lost in the rounding of bfloat16 logits.
    """
    embedded: list[Tensor] = []

    def follow(_module: nn.Module, _inputs: Any, out: Tensor) -> Tensor:
        embedded.append(out.detach().requires_grad_())
        # A copy: some models change what they embed in place.
        return embedded[-1].clone()

    hook = model.module.get_input_embeddings().register_forward_hook(follow)
    try:
        out = hidden(batch)
    finally:
        hook.remove()
    seen = out[torch.from_numpy(mine).to(out.device)]
    grads = torch.autograd.grad(_weighed(seen), embedded, materialize_grads=True)
    return [grad.flatten(0, -2).ne(0).any(-1).cpu() for grad in grads]


def _weighed(x: Tensor) -> Tensor:
    """A sum that no symmetry of a norm makes vanish."""
    return (x.flatten() * torch.linspace(-1, 2, x.numel(), dtype=x.dtype, device=x.device)).sum()


@torch.no_grad()
def _logits(model: Probed, chain: Chain) -> Tensor:
    """What the model itself makes of one row (L, vocabulary)."""
    ids = torch.tensor([chain.ids], device=model.device)
    return model.module(input_ids=ids, use_cache=False).logits[0]


def _chains(model: Probed) -> list[Chain]:
    """Rows that begin alike, of random tokens."""
    size = min(int(model.config.vocab_size), 1000)
    draw = np.random.default_rng(0)
    root = tuple(int(x) for x in draw.integers(3, size, ROOT))
    tails = [tuple(int(x) for x in draw.integers(3, size, count)) for count in TAILS]
    return [Chain(root + tail, (False,) * ROOT + (True,) * len(tail)) for tail in tails]


def _path_to_leaf(batch: PackedBatch, branch: int) -> list[int]:
    place = int(np.flatnonzero(batch.branch == branch)[-1])
    path: list[int] = []
    while place >= 0:
        path.append(place)
        place = int(batch.parent[place])
    return path[::-1]


def _far(a: Tensor, b: Tensor) -> bool:
    """Differences beyond rounding: a wrong mask moves logits by their own size."""
    limit = 0.1 if a.dtype in (torch.bfloat16, torch.float16) else 1e-3
    scale = b.float().std()
    # A difference that is no number is one.
    return not bool((a.float() - b.float()).abs().mean() <= limit * scale)


def _said(model: Probed, what: str) -> str:
    return f"{type(model.module).__name__} {what}"


def _unfit(model: Probed, what: str, expected: str = "") -> ModelError:
    return ModelError(
        _said(model, what),
        expected=expected or "a causal model whose rows can be computed together or one by one",
        remedy="Choose another base with --model.",
    )
