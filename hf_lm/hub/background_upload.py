"""Upload checkpoints while training continues."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

from hf_lm.errors import HfLmError, one_line
from hf_lm.hub.upload import is_published, publish
from hf_lm.recipe import HubRecipe


class BackgroundUploader:
    """A thread that uploads checkpoints one at a time; of those that wait, only the newest.

    An upload never stops or delays a run. If one fails, the user is notified, and the next upload
    contains everything again.

    Args:
        staging: a directory for the files that wait.
        recipe: the repository to upload to.
        write_card: writes the model card of a step into a directory.
        retry_command: the command that publishes the run.
        notify: shows a failure to the user.
    """

    def __init__(
        self,
        staging: Path,
        recipe: HubRecipe,
        *,
        write_card: Callable[[Path, int], None],
        retry_command: str,
        notify: Callable[[str], None],
    ) -> None:
        self.staging, self.recipe, self.write_card = staging, recipe, write_card
        self.retry_command, self.notify = retry_command, notify
        self.condition = threading.Condition()
        self.waiting: Path | None = None
        self.is_closed = False
        # A daemon thread, because a run that ends by an error or a signal does not wait for it.
        self.thread = threading.Thread(target=self.upload_all, daemon=True)
        self.thread.start()

    def submit(self, checkpoint: Path) -> None:
        """Upload a checkpoint next, instead of an older one that waits.

        Its files are linked or copied first, so that the checkpoint may be deleted meanwhile.
        """
        model = self.staging / checkpoint.name / "model"
        try:
            shutil.rmtree(model.parent, ignore_errors=True)
            model.mkdir(parents=True)
            for path in checkpoint.iterdir():
                if is_published(path.name):
                    link_or_copy(path, model / path.name)
        except OSError as error:
            self.notify(f"{checkpoint.name} will not be uploaded: {error.strerror}")
            return
        self.replace_waiting(model)

    def replace_waiting(self, model: Path | None) -> None:
        """Set the model to upload next, and delete the one that waited; None ends the thread."""
        with self.condition:
            superseded = self.waiting
            self.waiting = model
            self.is_closed = model is None
            self.condition.notify()
        if superseded:
            shutil.rmtree(superseded.parent, ignore_errors=True)

    def upload_all(self) -> None:
        """Upload each model that waits, until the uploader is closed."""
        while model := self.take_waiting():
            step = int(model.parent.name.split("-")[1])
            try:
                self.write_card(model, step)
                publish(model, self.recipe, retry_command=self.retry_command, tag=f"step-{step}")
            except (HfLmError, OSError) as error:
                self.notify(str(error))
            except Exception as error:  # the thread must not end unseen: later uploads need it
                kind = type(error).__name__
                self.notify(f"step-{step} was not uploaded: {kind}: {one_line(error)}")
            shutil.rmtree(model.parent, ignore_errors=True)

    def take_waiting(self) -> Path | None:
        """Wait for a model to upload, and return it; None after the uploader is closed."""
        with self.condition:
            self.condition.wait_for(lambda: self.waiting or self.is_closed)
            model = self.waiting
            self.waiting = None
        return model

    def close(self) -> None:
        """Wait for the running upload; drop the one that waits, as the final model follows."""
        self.replace_waiting(None)
        self.thread.join()
        shutil.rmtree(self.staging, ignore_errors=True)


def link_or_copy(path: Path, target: Path) -> None:
    """Create a hard link to a file, or a copy if the file system has no hard links."""
    try:
        os.link(path, target)
    except OSError:
        shutil.copyfile(path, target)
