"""Loading a language model for the forest engine: frozen, probed, ready for adapters."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from operator import call
from pathlib import Path
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils.quantization_config import BitsAndBytesConfig

from tunesmith.errors import ModelError
from tunesmith.models import attention, probe
from tunesmith.models.adapters import Adapters
from tunesmith.models.attention import Forest, Structure
from tunesmith.models.catalog import CARD
from tunesmith.models.fetch import weights_hash
from tunesmith.models.logprobs import Scored, score_tokens
from tunesmith.models.lora import Whole
from tunesmith.models.rows import Rows, trunk
from tunesmith.models.template import ChatTemplate
from tunesmith.models.terms import NOTICE
from tunesmith.models.tree import PackedBatch

DType = Literal["auto", "bfloat16", "float32", "float64", "nf4"]


@dataclass(eq=False)
class LoadedModel:
    """A frozen model with its template and adapters.

    Attributes:
        module: the transformers model; every parameter frozen.
        template: how it is spoken to.
        weights_hash: sha256 over its weights, which adapters are bound to.
        folder: where it was loaded from.
        rows: how it is computed where a forest is not the same as its rows; otherwise None.
    """

    module: Any
    template: ChatTemplate
    weights_hash: str
    folder: Path
    rows: Rows | None = None

    def __post_init__(self) -> None:
        self.adapters = Adapters(self.module)
        self._heads = WeakKeyDictionary[nn.Module, tuple[Tensor, Tensor | None]]()
        self.around: Callable[[Callable[[], Scored]], Scored] = call
        """What `logprobs` is computed in: where weights are sharded, it gathers them."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.module.get_input_embeddings().weight.device

    @cached_property
    def dtype(self) -> torch.dtype:
        """What activations are held in; weights that are sharded may be wider from then on."""
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
    def vocabulary(self) -> int:
        """How many tokens its logits are for; some models have more of them than the tokenizer."""
        return self.config.vocab_size

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

    def exact_head(self, hidden: Tensor, adapter: str | None = None) -> Tensor:
        """As `head`, in float32 at least: bfloat16 holds a logit of 20 to within 0.06 only.

        Args:
            adapter: whose head, where it has one of its own.
        """
        head = self.module.get_output_embeddings()
        head = head.of(adapter) if isinstance(head, Whole) else head
        weight, bias = self._wide(head)
        return self._finished(functional.linear(hidden.to(weight.dtype), weight, bias))

    def own_head(self, adapter: str | None) -> bool:
        """Whether an adapter has a head of its own."""
        head = self.module.get_output_embeddings()
        return isinstance(head, Whole) and adapter is not None and adapter in head.copies

    def _wide(self, head: Any) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of a head, widened once where they do not change any more."""
        kept = self._heads.get(head)
        if kept is None:
            wide = torch.promote_types(head.weight.dtype, torch.float32)
            bias = getattr(head, "bias", None)
            kept = head.weight.to(wide), None if bias is None else bias.to(wide)
            if not head.weight.requires_grad:
                self._heads[head] = kept
        return kept

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

    def unfreeze(self, *, embeddings: bool) -> list[nn.Parameter]:
        """Let every weight have a gradient, the input embedding and the head if they are to.

        Returns:
            The weights, each once: a head that is tied to the embedding is the same weight.
        """
        self.module.requires_grad_(True)
        for end in (self.module.get_input_embeddings(), self.module.get_output_embeddings()):
            end.requires_grad_(embeddings)
        return [weight for weight in self.module.parameters() if weight.requires_grad]

    def save(self, folder: Path, tensors: Mapping[str, Tensor], *, card: Mapping[str, Any]) -> None:
        """Write a model folder that `load` reads: weights by name, tokenizer, template, and a card.

        Raises:
            OSError: the disk refused it.
        """
        # The notice of what was changed is the caller's.
        left = shutil.ignore_patterns("*.safetensors*", NOTICE)
        shutil.copytree(self.folder, folder, ignore=left, dirs_exist_ok=True)
        plain = {name: weight.detach() for name, weight in tensors.items()}
        try:
            self.module.save_pretrained(folder, state_dict=plain)
        except SafetensorError as error:
            raise OSError(f"the weights cannot be written: {error}") from None
        for file in folder.glob("*.safetensors"):
            # Written for its owner's eyes only, unlike everything beside it.
            shutil.copymode(folder / "config.json", file)
        # transformers writes the dtype of the weights here, which may be masters.
        self.module.config.dtype = str(self.dtype).removeprefix("torch.")
        self.module.config.save_pretrained(folder)
        (folder / CARD).write_text(json.dumps(dict(card), indent=2) + "\n", encoding="utf-8")

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
        for layer in layers(self.module):
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
        filled = batch.filled() if self.device.type == "cpu" else batch
        ids = torch.from_numpy(filled.ids).to(self.device)
        tree = Forest(filled, self.device)
        return self.hidden(ids, tree.depth, tree)[: batch.size]

    def logprobs(self, batch: PackedBatch, *, exact: bool = False) -> Tensor:
        """Log-probabilities (N,) of the batch's N trained tokens, in their order.

        Args:
            exact: finish in float32: slower, for what is compared with other programs.
        """
        return self.scored(batch, exact=exact).logprobs

    def scored(self, batch: PackedBatch, *, exact: bool = False) -> Scored:
        """As `logprobs`, and which of the tokens the model itself would say."""
        return self.around(partial(self._scored, batch, exact=exact))

    def _scored(self, batch: PackedBatch, *, exact: bool) -> Scored:
        trained = torch.from_numpy(batch.trained).to(self.device)
        parents = torch.from_numpy(batch.parent[batch.trained]).to(self.device)
        hidden = self.forest(batch).index_select(0, parents)
        targets = torch.from_numpy(batch.ids).to(self.device).index_select(0, trained)
        if exact:
            trained_head = partial(self.exact_head, adapter=self.adapters.routing.all)
            return score_tokens(hidden, targets, trained_head)
        weights = self.module.get_output_embeddings().parameters()
        moving = [weight for weight in weights if weight.requires_grad]
        return score_tokens(hidden, targets, self.head, moving)


def layers(module: nn.Module) -> list[nn.Module]:
    """The layers of a transformers model, which can be computed again and gathered one by one."""
    return [part for part in module.modules() if isinstance(part, GradientCheckpointingLayer)]


def load(folder: Path, *, dtype: DType = "auto", device: str = "auto") -> LoadedModel:
    """A model folder, frozen and probed.

    Args:
        folder: safetensors with config and tokenizer; see models.fetch.
        dtype: `auto` is bfloat16 where the processor multiplies it fast, else float32; `nf4` holds
            weights in 4 bits and computes in bfloat16, on CUDA.
        device: `auto` is CUDA, then MPS, then the CPU.

    Raises:
        ModelError: the folder does not load, or its logits cannot be reproduced.
    """
    where = _device(device)
    try:
        module = _read(folder, _held(dtype, where))
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"{folder} does not load: {str(error)[:300]}",
            expected="a causal language model of transformers",
        ) from None
    if dtype != "nf4":
        module.to(where)
    return adopt(module, ChatTemplate.load(folder), weights_hash(folder), folder)


def _read(folder: Path, held: Mapping[str, Any]) -> Any:
    try:
        return AutoModelForCausalLM.from_pretrained(
            folder, attn_implementation=attention.NAME, **held
        )
    except KeyError:
        # Some look their attention up among their own, by its name.
        return AutoModelForCausalLM.from_pretrained(folder, **held)


def adopt(module: Any, template: ChatTemplate, digest: str, folder: Path) -> LoadedModel:
    """A transformers model, loaded with the forest attention, made ready: frozen and probed.

    Raises:
        ModelError: neither a forest nor rows by themselves give its logits, or an adapter beside its
            layers would be silent.
    """
    module.requires_grad_(False)
    module.eval()
    model = LoadedModel(module, template, digest, folder)
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


def _held(wanted: DType, device: str) -> dict[str, Any]:
    """How transformers is to hold the weights."""
    if wanted != "nf4":
        return {"dtype": dtype_for(wanted, device)}
    if device != "cuda":
        raise ModelError(
            f"4-bit weights on {device}",
            expected="CUDA: on the CPU, half of the adapters were seen to get no gradient",
            remedy="Use method.adapter=lora; train.activation_checkpointing=true saves memory.",
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(
            "bitsandbytes is not installed",
            expected="the package that holds weights in 4 bits",
            remedy="Type: pip install bitsandbytes",
        )
    # NormalFloat, its constants quantised too (Dettmers et al. 2023, arXiv:2305.14314).
    packed = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return {"dtype": torch.bfloat16, "quantization_config": packed, "device_map": {"": device}}


def dtype_for(wanted: DType, device: str) -> torch.dtype:
    """What a wish comes to on a device: `auto` is bfloat16 where it is multiplied fast, else float32."""
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
