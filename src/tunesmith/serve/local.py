"""The engine process: one base model with its adapters, behind HTTP on loopback.

    python -m tunesmith.serve.local spec.json

The spec is `local_process.Spec` as JSON. Once the model is loaded and the port is open, one line
{"type": "ready", "url": URL} goes to standard output. The process ends with its parent.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tunesmith.errors import TunesmithError
from tunesmith.models.generate import Sampler
from tunesmith.models.lifetime import die_with_parent
from tunesmith.models.load import load
from tunesmith.serve.local_process import Spec, claim_stdout, run_engine


def main(spec_file: str) -> int:
    """Run the engine of a spec file until it is told to end. Returns the exit code."""
    announce = claim_stdout()
    spec = Spec.model_validate_json(Path(spec_file).read_bytes())
    die_with_parent(spec.parent)
    try:
        # In a thread that ends. Each thread that computes has OpenMP workers of its own, and where
        # they are more than the cores they sleep between products: a decode step then takes 1.8
        # times as long. The main thread only answers HTTP, so it must never have had any.
        with ThreadPoolExecutor(max_workers=1) as aside:
            sampler = aside.submit(_sampler, spec).result()
        return run_engine(spec, sampler.model, sampler, announce)
    except TunesmithError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code


def _sampler(spec: Spec) -> Sampler:
    sampler = Sampler(load(spec.model, dtype=spec.dtype), max_rows=spec.max_rows)
    for name, folder in spec.adapters.items():
        sampler.add_adapter(name, folder)
    return sampler


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
