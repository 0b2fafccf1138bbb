"""The engine process of llama.cpp: the local engine's surface and ready line.

    python -m tunesmith.serve.llamacpp spec.json

The spec is `local_process.Spec` as JSON. Weights are served from GGUF files that are written at
their first use, in float16, or in float32 where the spec's dtype says so.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import closing, contextmanager

from tunesmith.errors import EngineError
from tunesmith.serve.llamacpp_sampler import LlamaSampler
from tunesmith.serve.local_http import engine_app
from tunesmith.serve.local_process import MakeApp, Spec, run


@contextmanager
def _loaded(spec: Spec) -> Generator[MakeApp]:
    if spec.dtype in ("nf4", "float64"):
        raise EngineError(
            f"llama.cpp does not serve weights in {spec.dtype}",
            expected="float16 or float32",
            remedy="Use --engine local.",
        )
    sampler = LlamaSampler(spec.model, max_rows=spec.max_rows, wide=spec.dtype == "float32")
    with closing(sampler):
        for name, folder in spec.adapters.items():
            sampler.add_adapter(name, folder)
        yield engine_app(spec, sampler, sampler)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1], _loaded))
