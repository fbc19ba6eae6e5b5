"""Exceptions meant for users, and their exit codes."""

from __future__ import annotations

import signal
from collections.abc import Sequence


class HfLmError(Exception):
    """An error that the user can fix; `exit_code` says which kind.

    HfLmError
    ├── UnexpectedError  1   an exception that nobody foresaw; its traceback is in a file
    ├── RecipeError      2   the recipe cannot be run as written
    ├── DataError        2   the text cannot be trained on
    ├── CheckpointError  3   no checkpoint of the run is valid
    ├── MismatchError    4   the folder holds a run of another recipe, data or tokenizer
    ├── NonFiniteError   5   the loss or a gradient became NaN or infinite
    ├── UploadError      6   the model was trained but not uploaded
    ├── LockedError     75   another run holds the folder
    └── StoppedError   130   a signal ended the run; 143 for all but SIGINT
    """

    exit_code = 1

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class UnexpectedError(HfLmError):
    """An exception that nobody foresaw; it is the cause, and its traceback is in a file."""


class RecipeError(HfLmError):
    """The recipe cannot be run as written."""

    exit_code = 2


class DataError(HfLmError):
    """The text cannot be trained on."""

    exit_code = 2


class CheckpointError(HfLmError):
    """No checkpoint of the run is valid, or one that is needed is damaged."""

    exit_code = 3


class MismatchError(HfLmError):
    """The output directory holds a run of another recipe, data or tokenizer."""

    exit_code = 4


class NonFiniteError(HfLmError):
    """The loss or a gradient became NaN or infinite; the weights were not changed."""

    exit_code = 5


class UploadError(HfLmError):
    """The model was not uploaded; it is still in its output directory."""

    exit_code = 6


class LockedError(HfLmError):
    """Another run holds the output directory."""

    exit_code = 75  # sysexits.h EX_TEMPFAIL


class StoppedError(HfLmError):
    """A signal ended the run.

    Args:
        number: the number of the signal.
        step: the step of the checkpoint that was written; None if there is none.
    """

    def __init__(self, number: int, step: int | None = None) -> None:
        self.number, self.exit_code = number, EXIT_TERMINATED
        if number == signal.SIGINT:
            self.exit_code = EXIT_INTERRUPTED
        where = "" if step is None else f" at step {step}, with a checkpoint"
        name = signal.Signals(number).name
        super().__init__(f"stopped by {name}{where}; the same command continues")


def one_line(error: BaseException, *, limit: int = 300) -> str:
    """Return the text of an error on one line, cut to a number of characters."""
    return " ".join(str(error).split())[:limit]


EXIT_IO = 74  # sysexits.h EX_IOERR: disk full, permission denied


EXIT_INTERRUPTED = 130  # 128 + SIGINT


EXIT_TERMINATED = 143  # 128 + SIGTERM
