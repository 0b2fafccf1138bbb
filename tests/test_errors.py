from __future__ import annotations

import pytest

from tunesmith import errors
from tunesmith.errors import RowError, TunesmithError

CODES = {
    "UsageError": 2,
    "GraderError": 2,
    "DataError": 3,
    "RowError": 3,
    "ModelError": 1,
    "AdapterError": 1,
    "FileRefused": 3,
    "TrainingError": 1,
    "DiskFull": 1,
    "FolderBusy": 1,
    "TrainerCrashed": 1,
    "EngineError": 1,
    "OverBudget": 1,
}


def test_a_message_says_what_was_found_what_was_expected_and_what_to_type() -> None:
    full = TunesmithError("a line is empty", expected="JSON", remedy="Remove it.")
    assert str(full) == "a line is empty; expected JSON. Remove it."
    assert str(TunesmithError("a line is empty")) == "a line is empty"
    assert (full.found, full.expected, full.remedy) == ("a line is empty", "JSON", "Remove it.")


@pytest.mark.parametrize("name", CODES)
def test_every_error_has_its_exit_code(name: str) -> None:
    kind: type[TunesmithError] = getattr(errors, name)
    assert issubclass(kind, TunesmithError)
    assert kind("found").exit_code == CODES[name]


def test_no_error_is_left_out() -> None:
    every = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert every == {*CODES, "TunesmithError"}


def test_a_row_that_is_refused_is_not_the_data_as_a_whole() -> None:
    assert issubclass(RowError, errors.DataError)
    assert issubclass(errors.AdapterError, errors.ModelError)
