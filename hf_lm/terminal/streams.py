"""Write to stdout and stderr without failing when nobody reads them.

A terminal may be closed and the reader of a pipe may go while a run of days trains on.
"""

from __future__ import annotations

import os
import sys
from typing import TextIO


class SafeStream:
    """sys.stdout or sys.stderr as they stand, silent once nobody reads them.

    Has what rich writes to: `write`, `flush`, `isatty`, `fileno` and `encoding`.

    Args:
        name: "stdout" or "stderr".
    """

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def stream(self) -> TextIO | None:
        """The stream behind; None in a process that was started with it closed."""
        return getattr(sys, self.name)

    @property
    def encoding(self) -> str:
        """That of the stream behind."""
        return getattr(self.stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        """Whether a person reads it."""
        return self.stream is not None and self.stream.isatty()

    def fileno(self) -> int:
        """That of the stream behind."""
        if self.stream is None:
            raise OSError("closed")
        return self.stream.fileno()

    def write(self, text: str) -> int:
        """Write, if anybody reads."""
        if self.stream is not None:
            try:
                self.stream.write(text)
                self.stream.flush()
            except (OSError, ValueError):
                self.give_up()
        return len(text)

    def flush(self) -> None:
        """Nothing waits."""

    def give_up(self) -> None:
        """Let what still waits, and Python writes at its end, go nowhere."""
        try:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
        except (OSError, ValueError):
            setattr(sys, self.name, None)
