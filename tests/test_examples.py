from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_the_openai_package_alone_takes_a_file_to_a_tuned_model(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    base = tiny("llama", max_position_embeddings=2048)
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"What comes after {number}?"},
                {"role": "assistant", "content": str(number + 1)},
            ]
        }
        for number in range(20)
    ]
    training = tmp_path / "rows.jsonl"
    training.write_text("".join(json.dumps(row) + "\n" for row in rows))
    environment = {**os.environ, "TUNESMITH_HOME": str(tmp_path / "home")}
    serve = ["serve", "--model", str(base), "--port", "0"]
    serving = subprocess.Popen(
        [sys.executable, "-c", "from tunesmith.cli import main; main()", *serve],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert serving.stdout is not None
        url = serving.stdout.readline().split()[-1]
        ran = subprocess.run(
            [sys.executable, str(EXAMPLES / "finetune.py"), str(training), url],
            capture_output=True,
            text=True,
            timeout=200,
        )
    finally:
        serving.terminate()
        serving.communicate(timeout=30)
    assert ran.returncode == 0, ran.stderr
    assert "The job has successfully completed" in ran.stdout
    assert ":ckpt-step-" in ran.stdout
    # A model that knows nothing writes anything, line breaks too.
    assert "\n{'topic': " in ran.stdout
    assert "\nopen_ticket {" in ran.stdout
    left = tmp_path / "home" / "files"
    assert list(left.iterdir()) == []
