from __future__ import annotations

from pathlib import Path

import pytest

from tunesmith.errors import UsageError
from tunesmith.graders import python


def write(folder: Path, text: str) -> str:
    path = folder / "mine.py"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_function_that_gives_a_number_is_a_metric_of_its_name(tmp_path: Path) -> None:
    file = write(tmp_path, "def first_word(a, b):\n    return a.split()[:1] == b.split()[:1]\n")
    grader = python.load(f"{file}:first_word", "ls -l")
    assert (grader.metrics, grader.primary) == (("first_word",), "first_word")
    assert grader.grade("ls -a", "ls -l") == {"first_word": 1.0}


def test_a_function_that_gives_a_dict_names_its_metrics(tmp_path: Path) -> None:
    file = write(tmp_path, "def f(a, b):\n    return {'long': len(a), 'same': a == b}\n")
    grader = python.load(f"{file}:f", "x")
    assert (grader.metrics, grader.primary) == (("long", "same"), "long")


@pytest.mark.parametrize("result", ["'good'", "None", "{'a': 'b'}", "{1: 2}", "float('nan')", "{}"])
def test_a_result_that_is_no_number_is_refused(tmp_path: Path, result: str) -> None:
    file = write(tmp_path, f"def f(a, b):\n    return {result}\n")
    with pytest.raises(UsageError, match=r"mine\.py:f"):
        python.load(f"{file}:f", "x")


@pytest.mark.parametrize(
    ("text", "said"), [("def g(): pass", "no function f"), ("def f(:", "does not import"), ("import nowhere_to_be_found", "does not import")]
)  # fmt: skip
def test_a_file_without_the_function_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        python.load(f"{write(tmp_path, text)}:f", "x")


@pytest.mark.parametrize("name", ["absent.py", "readme.txt"])
def test_a_file_that_is_not_there_or_not_python_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="not a Python file"):
        python.load(f"{tmp_path / name}:f", "x")
