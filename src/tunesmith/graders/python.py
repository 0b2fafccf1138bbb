"""A grader of the user's own: a function `(output, reference)` in a Python file."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from tunesmith.errors import UsageError
from tunesmith.graders.grader import Grader

_FORM = "FILE.py:FUNCTION with a function of (output, reference) that gives a number or a dict"


def load(spec: str, example: str) -> Grader:
    """The function named by `FILE.py:FUNCTION`, run in this process as the user's own code.

    It is called once, with `example` as output and as reference, to learn which metrics it gives:
    one of the function's name for a number, one for each key of a dict, the first being primary.

    Raises:
        UsageError: the file or the function is not there, or a result is not made of numbers.
    """
    file, _, name = spec.rpartition(":")
    function: object = getattr(_module(Path(file), spec), name, None)
    if not callable(function):
        raise UsageError(f"--grader {spec}: {file} has no function {name}", expected=_FORM)
    grade = partial(_grade, spec, name, function)
    metrics = tuple(grade(example, example))
    if not metrics:
        raise UsageError(f"--grader {spec}: {name} gave an empty dict", expected="a metric")
    return Grader(name, metrics, metrics[0], grade)


def _module(path: Path, spec: str) -> ModuleType:
    found = importlib.util.spec_from_file_location(f"tunesmith_grader_{path.stem}", path)
    if found is None or found.loader is None or not path.is_file():
        raise UsageError(f"--grader {spec}: {path} is not a Python file", expected=_FORM)
    module = importlib.util.module_from_spec(found)
    try:
        found.loader.exec_module(module)
    except (SyntaxError, ImportError, UnicodeDecodeError) as error:
        raise UsageError(
            f"--grader {spec}: {path} does not import: {error}",
            remedy=f"Run `python {path}` to see where.",
        ) from error
    return module


def _grade(
    spec: str, name: str, function: Callable[..., Any], output: str, reference: str
) -> Mapping[str, float]:
    result: Any = function(output, reference)
    scores: dict[Any, Any] = dict(result) if isinstance(result, Mapping) else {name: result}
    for metric, value in scores.items():
        number = isinstance(value, int | float) and math.isfinite(value)
        if not isinstance(metric, str) or not number:
            raise UsageError(
                f"--grader {spec}: {name} gave {metric!r}: {value!r}",
                expected="a finite number, or a dict of names and finite numbers",
            )
    return {metric: float(value) for metric, value in scores.items()}
