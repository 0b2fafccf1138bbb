"""The engine process: one base model with its adapters, behind HTTP on loopback.

    python -m tunesmith.serve.local spec.json

The spec is `local_process.Spec` as JSON. Once the model is loaded and the port is open, one line
{"type": "ready", "url": URL} goes to standard output. The process ends with its parent.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from tunesmith.models.generate import Sampler
from tunesmith.models.load import load
from tunesmith.serve.local_http import engine_app
from tunesmith.serve.local_process import MakeApp, Spec, run


@contextmanager
def _loaded(spec: Spec) -> Generator[MakeApp]:
    # In a thread that ends. Each thread that computes has OpenMP workers of its own, and where
    # they are more than the cores they sleep between products: a decode step then takes 1.8
    # times as long. The main thread only answers HTTP, so it must never have had any.
    with ThreadPoolExecutor(max_workers=1) as aside:
        sampler = aside.submit(_sampler, spec).result()
    yield engine_app(spec, sampler.model, sampler)


def _sampler(spec: Spec) -> Sampler:
    sampler = Sampler(load(spec.model, dtype=spec.dtype), max_rows=spec.max_rows)
    for name, folder in spec.adapters.items():
        sampler.add_adapter(name, folder)
    return sampler


if __name__ == "__main__":
    sys.exit(run(sys.argv[1], _loaded))
