"""The encoder process: one sentence encoder behind POST /v1/embeddings on loopback.

    python -m tunesmith.serve.encoder spec.json

It is started, watched and ended as the engine of a language model is; see serve.local.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

from tunesmith.models.encoder import Encoder
from tunesmith.serve.encoder_http import create_encoder_app
from tunesmith.serve.local_process import MakeApp, Spec, run


@contextmanager
def _loaded(spec: Spec) -> Generator[MakeApp]:
    with ThreadPoolExecutor(max_workers=1) as thread:
        encoder = thread.submit(Encoder.load, spec.model, dtype=spec.dtype).result()
        yield partial(create_encoder_app, encoder, thread, name=spec.name, key=spec.key)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1], _loaded))
