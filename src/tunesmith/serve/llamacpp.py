"""The engine process of llama.cpp: the local engine's surface and ready line.

    python -m tunesmith.serve.llamacpp spec.json

The spec is `local_process.Spec` as JSON. Weights are served from GGUF files that are written at
their first use, in float16, or in float32 where the spec's dtype says so.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tunesmith.errors import EngineError, TunesmithError
from tunesmith.models.lifetime import die_with_parent
from tunesmith.serve.llamacpp_sampler import LlamaSampler
from tunesmith.serve.local_process import Spec, claim_stdout, run_engine


def main(spec_file: str) -> int:
    """Run the engine of a spec file until it is told to end. Returns the exit code."""
    announce = claim_stdout()
    spec = Spec.model_validate_json(Path(spec_file).read_bytes())
    die_with_parent(spec.parent)
    try:
        if spec.dtype in ("nf4", "float64"):
            raise EngineError(
                f"llama.cpp does not serve weights in {spec.dtype}",
                expected="float16 or float32",
                remedy="Use --engine local.",
            )
        sampler = LlamaSampler(spec.model, max_rows=spec.max_rows, wide=spec.dtype == "float32")
        for name, folder in spec.adapters.items():
            sampler.add_adapter(name, folder)
        try:
            return run_engine(spec, sampler, sampler, announce)
        finally:
            sampler.close()
    except TunesmithError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
