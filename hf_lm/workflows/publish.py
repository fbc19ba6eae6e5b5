"""Publish the model of a run: model card, upload, and uploads during training.

Here the card and the Hub meet the folder of a run, as the other stages do in `fit.py`; a run that
is published nowhere imports neither.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from hf_lm.recipe import Recipe
from hf_lm.run_dir.directory import RunDirectory
from hf_lm.terminal import console


@contextmanager
def published(folder: RunDirectory, recipe: Recipe) -> Iterator[None]:
    """What trains within is uploaded behind it, and before it this was found to be possible."""
    asked = recipe.hub.push != "never" and folder.is_main_process
    if asked:
        from hf_lm.hub.access import check_write_access

        for note in check_write_access(recipe.hub):
            console.show_note(note)
    yield
    if asked:
        publish(folder, recipe)


def publish(folder: RunDirectory, recipe: Recipe) -> None:
    """Upload the finished model.

    Raises:
        UploadError: it did not happen; the command that tries again is named.
    """
    from hf_lm.hub import upload as hub

    describe(folder, recipe, folder.model)  # which may be published under another name by now
    url = hub.publish(folder.model, recipe.hub, retry_command=command(folder, recipe))
    console.show_rows("published", [("model", url)])


def describe(folder: RunDirectory, recipe: Recipe, model: Path, step: int = 0) -> None:
    """Put the card of a run beside the weights of a model, or of a step that is saved."""
    from hf_lm.hub.model_card import write_card

    write_card(model, folder.path, recipe, folder.log.rows(), step=step)


def command(folder: RunDirectory, recipe: Recipe) -> str:
    """What publishes the run, whatever hub section its folder has."""
    where = shlex.quote(console.short(folder.path))
    return f"hf-lm publish {where} --set hub.model_id={recipe.hub.model_id}"


@contextmanager
def saves(folder: RunDirectory, recipe: Recipe) -> Iterator[Callable[[Path], None]]:
    """Upload what is saved, beside training, if the recipe asks for it.

    Yields:
        A function to call with each checkpoint, before an older one is deleted.
    """
    if recipe.hub.push != "every_save" or not folder.is_main_process:
        yield lambda checkpoint: None
        return
    from hf_lm.hub.background_upload import BackgroundUploader
    from hf_lm.hub.upload import STAGING

    place = folder.path / STAGING
    shutil.rmtree(place, ignore_errors=True)  # what a killed run left
    uploads = BackgroundUploader(
        place,
        recipe.hub,
        write_card=partial(describe, folder, recipe),
        retry_command=command(folder, recipe),
        notify=console.show_note,
    )
    yield uploads.submit
    uploads.close()  # a run that a signal or an error ends waits for no upload
