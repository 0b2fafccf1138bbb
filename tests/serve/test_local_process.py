from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from tunesmith.serve.local_process import Spec

SPEC = {"model": "m", "name": "n", "key": "k", "parent": 1, "max_waiting": 0}


def test_a_spec_is_refused_for_an_unknown_key_and_for_a_line_below_nothing() -> None:
    for wrong in ({"colour": "red"}, {"max_waiting": -1}):
        with pytest.raises(ValidationError, match=next(iter(wrong))):
            Spec.model_validate(SPEC | wrong)


def test_an_orphan_ends_before_it_loads_anything(tmp_path: Path) -> None:
    spec = Spec.model_validate(SPEC | {"parent": os.getpid() + 10_000_000})
    (tmp_path / "spec.json").write_text(spec.model_dump_json())
    code = (
        "import os, sys; from tunesmith.serve.local_process import run;"
        "run(sys.argv[1], lambda spec: os.write(2, b'still here'))"
    )
    call = [sys.executable, "-c", code, str(tmp_path / "spec.json")]
    done = subprocess.run(call, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")
