"""Write to stdout and stderr without failing when nobody reads them.

A terminal may be closed, and the reader of a pipe may exit, while a run trains for days.
"""

from __future__ import annotations

import os
import sys
from typing import TextIO


class SafeStream:
    """The current sys.stdout or sys.stderr; silent after its reader is gone.

    The stream is looked up at every call, because notebooks and pytest replace it. It has what
    rich needs: `write`, `flush`, `isatty`, `fileno` and `encoding`.

    Args:
        name: "stdout" or "stderr".
    """

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def stream(self) -> TextIO | None:
        """The current stream; None in a process that was started with it closed."""
        return getattr(sys, self.name)

    @property
    def encoding(self) -> str:
        """The encoding of the current stream."""
        return getattr(self.stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        """Return whether the stream is a terminal."""
        return self.stream is not None and self.stream.isatty()

    def fileno(self) -> int:
        """Return the file descriptor of the current stream.

        Raises:
            OSError: the stream is closed, or has no descriptor.
        """
        if self.stream is None:
            raise OSError("closed")
        return self.stream.fileno()

    def write(self, text: str) -> int:
        """Write a text and flush it; after the first failure, discard it.

        Characters that the encoding of the stream lacks are replaced.
        """
        if self.stream is not None:
            encoding = self.encoding
            try:
                self.stream.write(text.encode(encoding, "replace").decode(encoding))
                self.stream.flush()
            except (OSError, ValueError):
                self.silence()
        return len(text)

    def flush(self) -> None:
        """Do nothing: `write` has flushed."""

    def silence(self) -> None:
        """Redirect the stream to the null device, also for the flush at the end of Python."""
        try:
            null_device = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null_device, self.fileno())
            os.close(null_device)
        except (OSError, ValueError):
            setattr(sys, self.name, None)
