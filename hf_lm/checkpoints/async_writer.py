"""Write checkpoints in a background thread, with one retry.

Training continues while a checkpoint is written. A failed write is known when the next checkpoint
is due, or at the end of training. That next checkpoint is the retry: if it fails too, the run ends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from hf_lm.checkpoints.store import CheckpointStore
from hf_lm.system.files import Write


class AsyncWriter:
    """Writes one checkpoint at a time, in the background.

    Args:
        store: the checkpoints of the run.
        notify: called with a note for the user.
    """

    def __init__(self, store: CheckpointStore, *, notify: Callable[[str], None]) -> None:
        self.store, self.notify = store, notify
        self.thread = ThreadPoolExecutor(1)
        self.pending: Future[Path] | None = None
        self.step = 0  # of the checkpoint that was written last, or is being written

    def wait(self) -> None:
        """Wait for the checkpoint that is being written.

        Raises:
            OSError: it could not be written; the one before it is valid.
        """
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.result()

    def pending_error(self) -> OSError | None:
        """Wait for the checkpoint that is being written, and return the error if it failed."""
        try:
            self.wait()
        except OSError as error:
            return error
        return None

    def write(
        self, step: int, files: Mapping[str, Write], *, best: int | None, failed: OSError | None
    ) -> None:
        """Start writing a checkpoint; if the one before failed, wait for this one.

        Args:
            step: the optimizer step of the checkpoint.
            files: by name; each function writes its file at a path.
            best: the step whose checkpoint is never deleted.
            failed: what `pending_error` returned for the checkpoint before.

        Raises:
            OSError: two checkpoints in a row could not be written.
        """
        lost, self.step = self.step, step
        self.pending = self.thread.submit(self.store.write, step, files, best=best)
        if failed:
            self.wait()
            self.notify(f"checkpoint-{lost} was not written, checkpoint-{step} was: {failed}")
