"""Loading a language model for the forest engine: frozen, probed, ready for adapters."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM
from transformers.modeling_layers import GradientCheckpointingLayer

from tunesmith.errors import ModelError
from tunesmith.models import attention, probe
from tunesmith.models.adapters import Adapters
from tunesmith.models.attention import Forest, Structure
from tunesmith.models.fetch import weights_hash
from tunesmith.models.logprobs import token_logprobs
from tunesmith.models.rows import Rows, trunk
from tunesmith.models.template import ChatTemplate
from tunesmith.models.tree import PackedBatch

DType = Literal["auto", "bfloat16", "float32", "float64"]


@dataclass(eq=False)
class LoadedModel:
    """A frozen model with its template and adapters.

    Attributes:
        module: the transformers model; every parameter frozen.
        template: how it is spoken to.
        weights_hash: sha256 over its weights, which adapters are bound to.
        rows: how it is computed where a forest is not the same as its rows; otherwise None.
    """

    module: Any
    template: ChatTemplate
    weights_hash: str
    rows: Rows | None = None

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

    @property
    def shares(self) -> bool:
        """Whether tokens that rows have in common can be computed once."""
        return self.rows is None

    @property
    def why(self) -> str:
        """What keeps it from sharing, as a sentence without its stop; empty where it shares."""
        return self.rows.why if self.rows else ""

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
            ModelError: the model cannot share, or another model made from the same config object
                took our attention away.
        """
        if self.rows is not None:
            raise ModelError(
                self.why, expected="rows laid out apart, as LoadedModel.forest takes them"
            )
        if self.config._attn_implementation != attention.NAME:
            raise ModelError(
                f"the model's attention was switched to {self.config._attn_implementation}",
                expected="a configuration that no other model shares",
            )
        out = trunk(self.module)(
            input_ids=ids[None], position_ids=depth[None], use_cache=False, tree=tree
        )
        return out.last_hidden_state[0]

    def head(self, hidden: Tensor) -> Tensor:
        """Logits (N, vocabulary) of hidden states (N, width), as the model itself finishes them."""
        head = self.module.get_output_embeddings()
        # Some keep what they add up in float32.
        return self._finished(head(hidden.to(head.weight.dtype)))

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
        cap = cap or getattr(self.config, "logits_soft_cap", None)
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
            ModelError: a row is longer than the context, or rows share tokens and the model cannot.
        """
        self.check_length(int(batch.depth.max(initial=-1)) + 1)
        if self.rows is not None:
            return self.rows.hidden(batch, self.device)
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
        module = _read(folder, _dtype(dtype, where))
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"{folder} does not load: {str(error)[:300]}",
            expected="a causal language model of transformers",
        ) from None
    module.to(where)
    return adopt(module, ChatTemplate.load(folder), weights_hash(folder))


def _read(folder: Path, dtype: torch.dtype) -> Any:
    try:
        return AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation=attention.NAME
        )
    except KeyError:
        # Some look their attention up among their own, by its name.
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


def adopt(module: Any, template: ChatTemplate, digest: str) -> LoadedModel:
    """A transformers model, loaded with the forest attention, made ready: frozen and probed.

    Raises:
        ModelError: neither a forest nor rows by themselves give its logits, or an adapter beside its
            layers would be silent.
    """
    module.requires_grad_(False)
    module.eval()
    model = LoadedModel(module, template, digest)
    why = probe.unshared(model)
    if why is not None:
        model.rows = probe.by_rows(model, why)
    probe.check_layers(model)
    return model


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
