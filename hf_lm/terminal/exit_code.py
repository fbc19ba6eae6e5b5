"""Run a command: user errors become lines on stderr and an exit code."""

from __future__ import annotations

import os
from collections.abc import Callable

from hf_lm.errors import EXIT_IO, HfLmError
from hf_lm.system.signals import signals_as_errors
from hf_lm.terminal.streams import SafeStream


def run_command(command: Callable[[], object]) -> int:
    """Run a command; a person's mistake is one line a problem on stderr, and an exit code."""
    speaks = os.environ.get("RANK", "0") == "0"
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
    for line in lines if speaks else ():
        SafeStream("stderr").write(f"{line}\n")
    return code
