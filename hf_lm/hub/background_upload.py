"""Upload checkpoints while training continues."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

from hf_lm.errors import HfLmError
from hf_lm.hub.upload import is_published, publish
from hf_lm.recipe import HubRecipe


class BackgroundUploader:
    """Uploads of checkpoints beside training: one at a time, of several that wait the newest.

    None of them stops or delays a run; what failed is told, and the next one brings it all.

    Args:
        place: a folder for what waits.
        recipe: where to.
        describe: puts the card of a step into a folder.
        retry_command: the command that publishes the run.
        notify: how a failure is told.
    """

    def __init__(
        self,
        place: Path,
        recipe: HubRecipe,
        *,
        describe: Callable[[Path, int], None],
        retry_command: str,
        notify: Callable[[str], None],
    ) -> None:
        self.place, self.recipe, self.describe = place, recipe, describe
        self.retry_command, self.notify = retry_command, notify
        self.waiting: Path | None = None
        self.changed, self.closed = threading.Condition(), False
        self.thread = threading.Thread(target=self.work, daemon=True)  # a kill waits for none
        self.thread.start()

    def submit(self, checkpoint: Path) -> None:
        """Upload a checkpoint, which may be deleted meanwhile, unless a newer one comes first."""
        kept = self.place / checkpoint.name / "model"
        try:
            shutil.rmtree(kept.parent, ignore_errors=True)
            kept.mkdir(parents=True)
            for path in checkpoint.iterdir():
                if is_published(path.name):
                    keep(path, kept / path.name)
        except OSError as error:
            self.notify(f"{checkpoint.name} will not be uploaded: {error.strerror}")
            return
        self.hand_over(kept)

    def hand_over(self, model: Path | None) -> None:
        """Have this uploaded next, or nothing more."""
        with self.changed:
            late, self.waiting = self.waiting, model
            self.closed = model is None
            self.changed.notify()
        if late:
            shutil.rmtree(late.parent, ignore_errors=True)

    def work(self) -> None:
        """Upload what is offered, until nothing more will be."""
        while model := self.next():
            step = int(model.parent.name.split("-")[1])
            try:
                self.describe(model, step)
                publish(model, self.recipe, retry_command=self.retry_command, tag=f"step-{step}")
            except (HfLmError, OSError) as error:
                self.notify(str(error))
            shutil.rmtree(model.parent, ignore_errors=True)

    def next(self) -> Path | None:
        """What is to be uploaded, once there is something; None once nothing more will be."""
        with self.changed:
            self.changed.wait_for(lambda: self.waiting or self.closed)
            model, self.waiting = self.waiting, None
        return model

    def close(self) -> None:
        """Wait for the upload that is running; one that waits gives way to the finished model."""
        self.hand_over(None)
        self.thread.join()
        shutil.rmtree(self.place, ignore_errors=True)


def keep(path: Path, target: Path) -> None:
    """A second name for a file that may be deleted; a copy where there are no second names."""
    try:
        os.link(path, target)
    except OSError:
        shutil.copyfile(path, target)
