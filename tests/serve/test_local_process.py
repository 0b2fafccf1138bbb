from __future__ import annotations

import os
import subprocess
import sys

import pytest
from pydantic import ValidationError

from tunesmith.serve.local_process import Spec


def test_an_unknown_key_of_a_spec_is_refused() -> None:
    with pytest.raises(ValidationError, match="colour"):
        Spec.model_validate({"model": "m", "name": "n", "key": "k", "parent": 1, "colour": "red"})


def test_the_ready_line_is_alone_on_standard_output_and_an_orphan_ends_at_once() -> None:
    code = (
        "import os; from tunesmith.models.lifetime import die_with_parent;"
        "from tunesmith.serve.local_process import claim_stdout;"
        "out = claim_stdout(); os.write(1, b'noise'); out.write('ready'); out.close();"
        f"die_with_parent({os.getpid() + 10_000_000}); os.write(2, b'still here')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (1, "ready", "noise")


def test_the_line_is_bounded_unless_another_bound_is_set() -> None:
    asked = {"model": "m", "name": "n", "key": "k", "parent": 1}
    assert Spec.model_validate(asked).max_waiting == 256
    with pytest.raises(ValidationError, match="max_waiting"):
        Spec.model_validate({**asked, "max_waiting": -1})
