"""Loading a language model for the forest engine: frozen, probed, ready for adapters."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM
from transformers.modeling_layers import GradientCheckpointingLayer

from tunesmith.errors import ModelError
from tunesmith.models import attention
from tunesmith.models.adapters import Adapters
from tunesmith.models.attention import Forest, Structure
from tunesmith.models.fetch import weights_hash
from tunesmith.models.logprobs import token_logprobs
from tunesmith.models.template import Chain, ChatTemplate
from tunesmith.models.tree import PackedBatch, plant

DType = Literal["auto", "bfloat16", "float32", "float64"]


@dataclass(eq=False)
class LoadedModel:
    """A frozen model with its template and adapters.

    Attributes:
        module: the transformers model; every parameter frozen.
        template: how it is spoken to.
        weights_hash: sha256 over its weights, which adapters are bound to.
    """

    module: Any
    template: ChatTemplate
    weights_hash: str

    def __post_init__(self) -> None:
        self.adapters = Adapters(self.module)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.module.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What activations are held in."""
        return self.module.get_input_embeddings().weight.dtype

    @property
    def context(self) -> int:
        """Longest sequence in tokens."""
        return self.template.context

    @cached_property
    def config(self) -> Any:
        """The text model's configuration."""
        return self.module.config.get_text_config()

    def check_length(self, tokens: int) -> None:
        """Refuse a row beyond the context: there rotary factors may change, for its neighbours too.

        Raises:
            ModelError: the row is longer than the context.
        """
        if tokens > self.context:
            raise ModelError(
                f"a row of {tokens:,} tokens",
                expected=f"at most {self.context:,}, the model's context",
                remedy="Shorten or split it, or choose a --model with a longer context.",
            )

    def hidden(self, ids: Tensor, depth: Tensor, tree: Structure) -> Tensor:
        """Last hidden states (T, width) of tokens (T,) at their depths under a structure.

        Raises:
            ModelError: another model made from the same config object took our attention away.
        """
        if self.config._attn_implementation != attention.NAME:
            raise ModelError(
                f"the model's attention was switched to {self.config._attn_implementation}",
                expected="a configuration that no other model shares",
            )
        out = self.module.base_model(
            input_ids=ids[None], position_ids=depth[None], use_cache=False, tree=tree
        )
        return out.last_hidden_state[0]

    def head(self, hidden: Tensor) -> Tensor:
        """Logits (N, vocabulary) of hidden states (N, width), as the model itself finishes them."""
        return self._finished(self.module.get_output_embeddings()(hidden))

    def exact_head(self, hidden: Tensor) -> Tensor:
        """As `head`, in float32 at least: bfloat16 holds a logit of 20 to within 0.06 only."""
        weight, bias = self._wide_head
        return self._finished(functional.linear(hidden.to(weight.dtype), weight, bias))

    @cached_property
    def _wide_head(self) -> tuple[Tensor, Tensor | None]:
        head = self.module.get_output_embeddings()
        wide = torch.promote_types(head.weight.dtype, torch.float32)
        bias = getattr(head, "bias", None)
        return head.weight.to(wide), None if bias is None else bias.to(wide)

    def _finished(self, logits: Tensor) -> Tensor:
        divide = getattr(self.config, "logits_scaling", None)
        multiply = getattr(self.config, "logit_scale", None)
        cap = getattr(self.config, "final_logit_softcapping", None)
        if divide:
            logits = logits / divide
        if multiply:
            logits = logits * multiply
        if cap:
            logits = torch.tanh(logits / cap) * cap
        return logits

    def recompute(self) -> None:
        """Activation checkpointing: keep each layer's input and compute the rest again for the
        backward pass (Chen et al. 2016, arXiv:1604.06174).

        Raises:
            ModelError: the model's layers cannot do that.
        """
        try:
            self.module.activation_checkpointing_enable({"use_reentrant": False})
        except ValueError as error:
            raise ModelError(
                str(error),
                expected="a model of transformers whose layers can be computed again",
                remedy="Use train.activation_checkpointing=false.",
            ) from None
        for layer in self.module.modules():
            if isinstance(layer, GradientCheckpointingLayer):
                # What a layer asks for. Its parts stay as they are served: no dropout but ours.
                layer.training = True

    def forest(self, batch: PackedBatch) -> Tensor:
        """Last hidden states (T, width) of a packed batch.

        Raises:
            ModelError: a row is longer than the context.
        """
        self.check_length(int(batch.depth.max(initial=-1)) + 1)
        ids = torch.from_numpy(batch.ids).to(self.device)
        tree = Forest(batch, self.device)
        return self.hidden(ids, tree.depth, tree)

    def logprobs(self, batch: PackedBatch, *, exact: bool = False) -> Tensor:
        """Log-probabilities (N,) of the batch's N trained tokens, in their order.

        Args:
            exact: finish in float32: slower, for what is compared with other programs.
        """
        trained = torch.from_numpy(batch.trained).to(self.device)
        parents = torch.from_numpy(batch.parent[batch.trained]).to(self.device)
        hidden = self.forest(batch).index_select(0, parents)
        targets = torch.from_numpy(batch.ids).to(self.device).index_select(0, trained)
        return token_logprobs(hidden, targets, self.exact_head if exact else self.head)


def load(folder: Path, *, dtype: DType = "auto", device: str = "auto") -> LoadedModel:
    """A model folder, frozen and probed.

    Args:
        folder: safetensors with config and tokenizer; see models.fetch.
        dtype: `auto` is bfloat16 where the processor multiplies it fast, else float32.
        device: `auto` is CUDA, then MPS, then the CPU.

    Raises:
        ModelError: the folder does not load, or its logits cannot be reproduced.
    """
    where = _device(device)
    try:
        module: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=_dtype(dtype, where), attn_implementation=attention.NAME
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"{folder} does not load: {str(error)[:300]}",
            expected="a causal language model of transformers",
        ) from None
    module.to(where)
    return adopt(module, ChatTemplate.load(folder), weights_hash(folder))


def adopt(module: Any, template: ChatTemplate, digest: str) -> LoadedModel:
    """A transformers model, loaded with the forest attention, made ready: frozen and probed."""
    module.requires_grad_(False)
    module.eval()
    model = LoadedModel(module, template, digest)
    _probe(model)
    return model


ATTENTION_LAYERS = {"full_attention", "sliding_attention"}
ROOT = 40
"""Tokens that the probe's two rows have in common: enough to be shared."""


def _probe(model: LoadedModel) -> None:
    """Refuse a model for which a forest is not the same as its rows alone (trap 38).

    Told from numbers and not from a list of families: rows alone against the model's own
    attention, then the forest against the rows, then one branch's gradient in the other.
    """
    kinds = set(getattr(model.config, "layer_types", None) or ()) - ATTENTION_LAYERS
    if kinds:
        raise _unfit(model, f"has layers of {', '.join(sorted(kinds))}")
    size = min(int(model.config.vocab_size), 1000)
    draw = np.random.default_rng(0)
    root = tuple(int(x) for x in draw.integers(3, size, ROOT))
    tails = [tuple(int(x) for x in draw.integers(3, size, n)) for n in (5, 9)]
    chains = [Chain(root + tail, (False,) * ROOT + (True,) * len(tail)) for tail in tails]
    batch = plant(chains)
    try:
        alone = _alone(model, chains)
        with torch.no_grad():
            together = model.head(model.forest(batch))
        leak = _leak(model, batch)
    except (RuntimeError, AttributeError, TypeError, ValueError) as error:
        raise _unfit(model, f"does not run: {error}") from None
    for index, logits in enumerate(alone):
        path = _path_to_leaf(batch, index)
        if _far(together[path[ROOT:]], logits[ROOT:]) or _far(together[path], logits):
            raise _unfit(model, "computes a row differently when it shares tokens")
    if leak:
        raise _unfit(model, "lets one row of a batch see another")


@torch.no_grad()
def _alone(model: LoadedModel, chains: list[Chain]) -> list[Tensor]:
    """Logits of each chain by itself, equal to what the model's own attention gives."""
    alone = [model.head(model.forest(plant([chain]))) for chain in chains]
    model.module.set_attn_implementation("eager")
    for chain, logits in zip(chains, alone, strict=True):
        ids = torch.tensor([chain.ids], device=model.device)
        if _far(logits, model.module(input_ids=ids, use_cache=False).logits[0]):
            raise _unfit(model, "gives other logits with our attention than with its own")
    model.module.set_attn_implementation(attention.NAME)
    return alone


@torch.enable_grad()
def _leak(model: LoadedModel, batch: PackedBatch) -> bool:
    """Whether one branch has any gradient in the tokens of the other.

    Exactly zero where attention is all that joins tokens, in every precision; small leaks, as
    of a convolution's state, are lost in the rounding of bfloat16 logits.
    """
    embedded: list[Tensor] = []

    def follow(_module: nn.Module, _inputs: Any, out: Tensor) -> None:
        embedded.append(out.requires_grad_())

    hook = model.module.get_input_embeddings().register_forward_hook(follow)
    try:
        hidden = model.forest(batch)
    finally:
        hook.remove()
    mine, other = (torch.from_numpy(np.flatnonzero(batch.branch == index)) for index in (1, 0))
    seen = hidden[mine.to(hidden.device)]
    weigh = torch.linspace(-1, 2, seen.numel(), dtype=seen.dtype, device=seen.device)
    (grad,) = torch.autograd.grad((seen.flatten() * weigh).sum(), embedded[0])
    return bool(grad[0, other.to(grad.device)].any())


def _unfit(model: LoadedModel, what: str) -> ModelError:
    return ModelError(
        f"{type(model.module).__name__} {what}",
        expected="a model whose tokens are joined by causal softmax attention alone",
        remedy="Choose another base with --model.",
    )


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
    return bool((a.float() - b.float()).abs().mean() > limit * scale)


def _device(wanted: str) -> str:
    if wanted != "auto":
        return wanted
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _dtype(wanted: DType, device: str) -> torch.dtype:
    if wanted != "auto":
        return getattr(torch, wanted)
    fast = (
        device != "cpu"
        or torch.cpu._is_avx512_bf16_supported()  # pyright: ignore[reportPrivateUsage]
        or torch.cpu._is_amx_tile_supported()  # pyright: ignore[reportPrivateUsage]
    )
    return torch.bfloat16 if fast else torch.float32


def parameters(module: nn.Module) -> int:
    """Number of weights."""
    return sum(weight.numel() for weight in module.parameters())
