"""Run a command: user errors become lines on stderr and an exit code."""

from __future__ import annotations

from collections.abc import Callable

from hf_lm.errors import EXIT_INTERRUPTED, EXIT_IO, EXIT_TERMINATED, HfLmError
from hf_lm.system.launch import wait_for_main_process
from hf_lm.system.processes import is_main_process, rank
from hf_lm.system.signals import signals_as_errors
from hf_lm.terminal.streams import SafeStream


def run_command(command: Callable[[], object]) -> int:
    """Run a command, and turn errors of the user or the system into an exit code.

    The main process prints one line per problem on stderr, and another process does if it fails
    alone. Other exceptions, which are bugs, are raised with their traceback.

    Args:
        command: the command; what it returns is ignored.

    Returns:
        0, the exit code of an HfLmError, or 74 for an error of the operating system.
    """
    try:
        with signals_as_errors():
            command()
    except HfLmError as error:
        lines, code = error.problems, error.exit_code
    except OSError as error:
        if error.errno is None:
            raise
        lines, code = [f"{error.filename or 'I/O'}: {error.strerror}"], EXIT_IO
    else:
        return 0
    prefix = ""
    if not is_main_process():
        if code in (EXIT_INTERRUPTED, EXIT_TERMINATED):  # all processes stop together
            return code
        wait_for_main_process()
        prefix = f"process {rank()}: "
    for line in lines:
        SafeStream("stderr").write(f"{prefix}{line}\n")
    return code
