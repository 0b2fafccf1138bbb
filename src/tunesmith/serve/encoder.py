"""The encoder process: one sentence encoder behind POST /v1/embeddings on loopback.

    python -m tunesmith.serve.encoder spec.json

It is started, watched and ended as the engine of a language model is; see serve.local.
"""

from __future__ import annotations

import json
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TextIO

import uvicorn

from tunesmith.errors import TunesmithError
from tunesmith.models.encoder import Encoder
from tunesmith.models.lifetime import die_with_parent
from tunesmith.serve.encoder_http import create_encoder_app
from tunesmith.serve.local_process import GRACE_SECONDS, Spec, claim_stdout


def main(spec_file: str) -> int:
    """Run the encoder of a spec file until it is told to end. Returns the exit code."""
    announce = claim_stdout()
    spec = Spec.model_validate_json(Path(spec_file).read_bytes())
    die_with_parent(spec.parent)
    with ThreadPoolExecutor(max_workers=1) as thread:
        try:
            encoder = thread.submit(Encoder.load, spec.model, dtype=spec.dtype).result()
        except TunesmithError as error:
            sys.stderr.write(f"{error}\n")
            return error.exit_code
        return _run(spec, encoder, thread, announce)


def _run(spec: Spec, encoder: Encoder, thread: ThreadPoolExecutor, announce: TextIO) -> int:
    crashed = False

    def on_crash() -> None:
        nonlocal crashed
        crashed = server.should_exit = True

    app = create_encoder_app(encoder, thread, name=spec.name, key=spec.key, on_crash=on_crash)
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, timeout_graceful_shutdown=GRACE_SECONDS
    )
    server = uvicorn.Server(config)
    listener = socket.create_server((spec.host, spec.port))
    port = listener.getsockname()[1]
    announce.write(json.dumps({"type": "ready", "url": f"http://{spec.host}:{port}"}) + "\n")
    announce.close()
    server.run(sockets=[listener])
    return 1 if crashed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
