"""A llama.cpp server on loopback inside the engine process, and what it is asked."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import secrets
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

from tunesmith.errors import EngineError

CACHE_BYTES = 2 << 30
"""Most memory for keys and values; it decides how many rows are answered at once."""


class LlamaServer:
    """A GGUF base with the adapters that it was started with; it stops when nobody holds it.

    Args:
        base: the GGUF file of the model.
        adapters: GGUF files of adapters, each at scale 0 until a request asks for it.
        slots: rows that are answered at once, each with `context` tokens.
        wide: keys, values and attention in float32 instead of float16.

    Raises:
        EngineError: llama.cpp does not load them; the reason is in the log.
    """

    def __init__(
        self, base: Path, adapters: Sequence[Path], *, slots: int, context: int, wide: bool
    ) -> None:
        llama, self.adapters = bindings(), tuple(adapters)
        params = llama.CommonParams()
        params.model.path = str(base)
        params.n_parallel, params.n_ctx = slots, slots * context
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = _threads()
        # A stream holds a thread for as long as it lasts.
        params.n_threads_http = slots + 2
        # Left alone, both hold memory or print for nothing; nobody looks at its page.
        params.cache_ram_mib, params.warmup, params.ui, params.verbosity = 0, False, False, 0
        params.port, key = 0, secrets.token_urlsafe(32)
        params.api_keys = [key]
        if wide:
            # Its flash attention rounds further than the weights do.
            params.flash_attn_type = llama.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
            params.cache_type_k = params.cache_type_v = llama.ggml_type.GGML_TYPE_F32
        params.lora_adapters = [_silent(llama, path) for path in self.adapters]
        try:
            self._server = llama.Server(params)
        except RuntimeError as error:
            names = ", ".join(path.name for path in (base, *self.adapters))
            raise EngineError(
                f"llama.cpp does not load {names}: {error}", expected="GGUF files that it reads"
            ) from None
        self._url = str(self._server.listening_address)
        self._headers = {"authorization": f"Bearer {key}"}

    def scales(self, adapter: Path | None) -> list[dict[str, Any]]:
        """Every adapter with its scale: one that is not named keeps that of the start."""
        return [
            {"id": place, "scale": 1.0 if path == adapter else 0.0}
            for place, path in enumerate(self.adapters)
        ]

    async def stream(
        self, http: httpx.AsyncClient, body: Mapping[str, Any]
    ) -> AsyncGenerator[dict[str, Any]]:
        """The events of POST /completion; leaving it early frees the slot.

        Raises:
            EngineError: llama.cpp refuses, with its words.
        """
        asked = http.stream("POST", f"{self._url}/completion", json=body, headers=self._headers)
        async with asked as answer:
            if not answer.is_success:
                raise _said(json.loads(await answer.aread()))
            async for line in answer.aiter_lines():
                kind, _, text = line.partition(": ")
                if kind in ("data", "error"):
                    event: dict[str, Any] = json.loads(text)
                    if kind == "error" or "error" in event:
                        raise _said(event)
                    yield event


def slots(config: Mapping[str, Any], context: int, wanted: int, *, wide: bool) -> int:
    """How many rows of `context` tokens the memory for keys and values holds; at least one.

    Args:
        config: config.json of the model.
    """
    heads = int(config["num_attention_heads"])
    head = int(config.get("head_dim") or config["hidden_size"] // heads)
    width = int(config.get("num_key_value_heads") or heads) * head
    token = 2 * width * int(config["num_hidden_layers"]) * (4 if wide else 2)
    return max(1, min(wanted, CACHE_BYTES // (token * context)))


def bindings() -> Any:
    """The package xllamacpp, which has no types.

    Raises:
        EngineError: it is not installed.
    """
    if importlib.util.find_spec("xllamacpp") is None:
        raise EngineError(
            "llama.cpp is not installed",
            expected="the package xllamacpp",
            remedy="Type: pip install 'tunesmith[llama-cpp]'",
        )
    return importlib.import_module("xllamacpp")


def _silent(llama: Any, path: Path) -> Any:
    info = llama.CommonAdapterLoraInfo()
    info.path, info.scale = str(path), 0.0
    return info


def _threads() -> int:
    """One a core, or what torch is told by the same variable.

    llama.cpp's threads wait for each other without sleeping: more than there are free cores are
    slower than one.
    """
    told = os.environ.get("OMP_NUM_THREADS", "")
    if told.isdecimal():
        return int(told)
    here = hasattr(os, "sched_getaffinity")
    return len(os.sched_getaffinity(0)) if here else os.cpu_count() or 1


def _said(event: Mapping[str, Any]) -> EngineError:
    told = event.get("error", event)
    return EngineError(f"llama.cpp refuses the request: {told.get('message', told)}")
