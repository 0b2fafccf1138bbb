"""The engine process: one base model with its adapters, behind HTTP on loopback.

    python -m tunesmith.serve.local spec.json

The spec is `local_process.Spec` as JSON. Once the model is loaded and the port is open, one line
{"type": "ready", "url": URL} goes to standard output. The process ends with its parent.
"""

from __future__ import annotations

import sys
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
        model = load(spec.model, dtype=spec.dtype)
        sampler = Sampler(model, max_rows=spec.max_rows)
        for name, folder in spec.adapters.items():
            sampler.add_adapter(name, folder)
        return run_engine(spec, model, sampler, announce)
    except TunesmithError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
