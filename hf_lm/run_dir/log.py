"""Append to log.jsonl, read it, and truncate it on resume."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hf_lm.system.files import fsync, json_safe, write_atomically
from hf_lm.system.processes import is_main_process


class TrainingLog:
    """The log of a run: one JSON object per line, with the step and the elapsed seconds.

    Attributes:
        step: the step of the newest row, or of the checkpoint that the run was resumed from.
        error: why rows are missing; empty if none are.

    Args:
        path: the file.
        before_append: called with the step of a row, before the row is written.
    """

    def __init__(
        self, path: Path, *, before_append: Callable[[int], None] = lambda step: None
    ) -> None:
        self.path, self.before_append = path, before_append
        self.step, self.error = 0, ""

    def append(self, row: Mapping[str, Any]) -> None:
        """Append one row; note an error and continue, because training matters more than a row."""
        try:
            self.step = row["step"]
            self.before_append(self.step)
            with self.path.open("a", encoding="utf-8", newline="\n") as file:
                file.write(json_line(row))
        except OSError as error:  # If the disk is full, the next checkpoint raises.
            self.error = self.error or f"{self.path.name}: {error.strerror}"

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the rows; the first line that a crash has cut off ends them."""
        if not self.path.is_file():
            return
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                return

    def flush_to_disk(self) -> None:
        """Flush the rows to the disk, so that no checkpoint is newer than the log."""
        if self.path.is_file():
            fsync(self.path)

    def truncate(self, step: int | None) -> None:
        """Delete the rows after a step; the resumed run writes them again.

        Args:
            step: of the checkpoint that the run continues from; None deletes all rows, because a
                run that starts over writes a row of step 0 as well.
        """
        self.step = step or 0
        if is_main_process():
            kept_rows = [row for row in self.rows() if step is not None and row["step"] <= step]
            write_atomically(self.path, "".join(map(json_line, kept_rows)))


def json_line(row: Mapping[str, object]) -> str:
    """Format a row as one line of JSON that every parser reads: without NaN and Infinity."""
    return json.dumps(json_safe(row), ensure_ascii=False, allow_nan=False) + "\n"
