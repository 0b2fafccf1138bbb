"""The exceptions of tunesmith, all of them.

    TunesmithError              anything a person can mend; printed without a traceback
    ├── UsageError              wrong option, unknown recipe key, contradicting settings      exit 2
    │   └── GraderError         a grader is not well formed, or cannot run on this machine
    ├── DataError               the data as a whole is refused                                exit 3
    │   ├── RowError            one row is refused; the others may go on
    │   └── FileRefused         a file that was uploaded for a job is refused, with OpenAI's code
    ├── ModelError              a model is missing, damaged, or not what it was said to be     exit 1
    │   └── AdapterError        an adapter does not belong to these weights, or is incomplete
    ├── TrainingError           a run cannot go on (non-finite gradient)                       exit 1
    │   ├── DiskFull            the disk has no room for what is to be written
    │   ├── FolderBusy          another process trains in the folder
    │   └── TrainerCrashed      the training process ended without a word
    └── EngineError             a serving process does not start, answer or agree              exit 1
        └── OverBudget          an endpoint's next answer may cost more than was allowed

Every message says what was found, what was expected and what to type.
"""

from __future__ import annotations


class TunesmithError(Exception):
    """A problem that the person at the keyboard can mend.

    Args:
        found: what is there.
        expected: what should have been there.
        remedy: the command or edit that mends it.
    """

    exit_code = 1

    def __init__(self, found: str, *, expected: str = "", remedy: str = "") -> None:
        super().__init__(found, expected, remedy)
        self.found, self.expected, self.remedy = found, expected, remedy

    def __str__(self) -> str:
        parts = [self.found]
        if self.expected:
            parts.append(f"expected {self.expected}")
        text = "; ".join(parts)
        return f"{text}. {self.remedy}" if self.remedy else text


class UsageError(TunesmithError):
    """Wrong option, unknown key or settings that contradict each other."""

    exit_code = 2


class GraderError(UsageError):
    """A grader is not well formed, or cannot run on this machine.

    Args:
        path: the field of the grader's JSON that it is about, as in `graders.x.operation`.
    """

    def __init__(self, found: str, *, path: str = "", expected: str = "", remedy: str = "") -> None:
        super().__init__(found, expected=expected, remedy=remedy)
        self.path = path


class DataError(TunesmithError):
    """The data as a whole is refused."""

    exit_code = 3


class RowError(DataError):
    """One row is refused: raised by parsers, which know the row but not the file."""


class FileRefused(DataError):
    """A file that was uploaded for a fine-tuning job is refused.

    Args:
        found: what is wrong with it.
        code: OpenAI's word for it.
        param: the setting that named the file.
    """

    def __init__(
        self, found: str, *, code: str = "invalid_training_file", param: str = "training_file"
    ) -> None:
        super().__init__(found)
        self.code, self.param = code, param


class ModelError(TunesmithError):
    """A model is missing, damaged or not what it was said to be."""


class AdapterError(ModelError):
    """An adapter does not belong to these weights, or is incomplete."""


class TrainingError(TunesmithError):
    """A run cannot go on; its code is what programs know it by."""

    code = "training_failed"


class DiskFull(TrainingError):
    """The disk has no room for what is to be written."""

    code = "disk_full"


class FolderBusy(TrainingError):
    """Another process trains in the run's folder."""

    code = "folder_busy"


class TrainerCrashed(TrainingError):
    """The training process ended without a word: killed, for its memory or by somebody."""

    code = "trainer_crashed"


class EngineError(TunesmithError):
    """A serving process does not start, answer or agree with the trainer."""


class OverBudget(EngineError):
    """An endpoint's next answer may cost more than was allowed; what was answered is kept."""
