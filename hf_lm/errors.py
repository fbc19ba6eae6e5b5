"""Errors meant for people: one line a problem, an exit code, no traceback."""

from __future__ import annotations

from collections.abc import Sequence


class HfLmError(Exception):
    """Something the person at the keyboard can mend; `exit_code` says which kind.

    HfLmError
    ├── RecipeError      2   the recipe cannot be run as written
    ├── DataError        2   the text cannot be trained on
    ├── MismatchError    4   the folder holds a run of another recipe, data or tokenizer
    └── NonFiniteError   5   the loss or a gradient became NaN or infinite
    """

    exit_code = 1

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class RecipeError(HfLmError):
    """The recipe cannot be run as written."""

    exit_code = 2


class DataError(HfLmError):
    """The text cannot be trained on."""

    exit_code = 2


class MismatchError(HfLmError):
    """The output folder holds a run of another recipe, data or tokenizer."""

    exit_code = 4


class NonFiniteError(HfLmError):
    """The loss or a gradient became NaN or infinite; the model was left as it was."""

    exit_code = 5


EXIT_IO = 74  # sysexits.h EX_IOERR: disk full, permission denied
EXIT_INTERRUPTED = 130  # 128 + SIGINT
EXIT_TERMINATED = 143  # 128 + SIGTERM
