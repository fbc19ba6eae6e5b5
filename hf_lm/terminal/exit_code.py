"""Run a command: errors become lines on stderr and an exit code."""

from __future__ import annotations

import contextlib
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hf_lm.errors import (
    EXIT_INTERRUPTED,
    EXIT_IO,
    EXIT_TERMINATED,
    HfLmError,
    UnexpectedError,
    one_line,
)
from hf_lm.system.launch import wait_for_main_process
from hf_lm.system.processes import is_main_process, rank
from hf_lm.system.signals import signals_as_errors
from hf_lm.terminal.streams import SafeStream

PACKAGE = Path(__file__).parents[1]


def run_command(command: Callable[[], object], *, show_traceback: bool = False) -> int:
    """Run a command, and turn every error into lines on stderr and an exit code.

    The main process prints one line per problem, and another process does if it fails alone.

    Args:
        command: the command; what it returns is ignored.
        show_traceback: print the traceback of an error before its lines.

    Returns:
        0, the exit code of an HfLmError, 74 for an error of the operating system, or 1 for an
        exception that nobody foresaw.
    """
    try:
        with signals_as_errors(), unexpected_as_error():
            command()
    except HfLmError as error:
        lines, code, shown = error.problems, error.exit_code, error.__cause__ or error
    except OSError as error:
        lines, code = [f"{error.filename or 'I/O'}: {error.strerror}"], EXIT_IO
        shown = error
    else:
        return 0
    prefix = ""
    if not is_main_process():
        if code in (EXIT_INTERRUPTED, EXIT_TERMINATED):  # all processes stop together
            return code
        wait_for_main_process()
        prefix = f"process {rank()}: "
    if show_traceback:
        SafeStream("stderr").write("".join(traceback.format_exception(shown)))
    for line in lines:
        SafeStream("stderr").write(f"{prefix}{line}\n")
    return code


@contextmanager
def unexpected_as_error(folder: Path | None = None) -> Iterator[None]:
    """Turn an exception that nobody foresaw into one line, and write its traceback to a file.

    Args:
        folder: the folder of a run, which gets the file if it exists; a temporary file otherwise.

    Raises:
        UnexpectedError: the line, with the exception as its cause.
    """
    try:
        yield
    except HfLmError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        path = write_traceback(error, folder)
        remedy = f"its traceback is in {path}" if path else "--traceback shows where"
        raise UnexpectedError(
            f"{place_of(error)}: {type(error).__name__}: {one_line(error)}; nobody foresaw this, "
            f"please report it: {remedy}"
        ) from error


def place_of(error: BaseException) -> str:
    """Return the innermost file and function of this package that an exception came through."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if PACKAGE in Path(frame.filename).parents]
    own = [frame for frame in own if frame.filename != __file__]
    if not own:
        return "hf_lm"
    return f"{Path(own[-1].filename).relative_to(PACKAGE.parent)}, {own[-1].name}"


def write_traceback(error: BaseException, folder: Path | None) -> Path | None:
    """Write the traceback of an exception to a file; return None if no folder can be written."""
    text = "".join(traceback.format_exception(error))
    suffix = "" if is_main_process() else f"-{rank()}"
    if folder is not None and folder.is_dir():
        with contextlib.suppress(OSError):
            path = folder / f"traceback{suffix}.txt"
            path.write_text(text, encoding="utf-8")
            return path
    with contextlib.suppress(OSError):
        with tempfile.NamedTemporaryFile(
            "w", prefix="hf_lm-", suffix=".txt", delete=False, encoding="utf-8"
        ) as file:
            file.write(text)
        return Path(file.name)
    return None
