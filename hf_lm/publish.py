"""A run in; its model with a card, and both on the Hub, out.

Here the card and the Hub meet the folder of a run, as the other stages do in `fit.py`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hf_lm import console, hub
from hf_lm.card import Facts, write_card
from hf_lm.recipe import Recipe
from hf_lm.run_folder import METRICS, RunFolder
from hf_lm.uploads import Uploads


@contextmanager
def published(folder: RunFolder, recipe: Recipe) -> Iterator[None]:
    """What trains within is uploaded behind it, and before it this was found to be possible."""
    asked = recipe.hub.push != "never" and folder.writes
    for note in hub.refuse_access(recipe.hub) if asked else ():
        console.show_note(note)
    yield
    if asked:
        publish(folder, recipe)


def publish(folder: RunFolder, recipe: Recipe) -> None:
    """Upload the finished model.

    Raises:
        UploadError: it did not happen; the command that tries again is named.
    """
    facts = Facts.of(recipe, folder.provenance, folder.rows(), folder.read(METRICS))
    write_card(folder.model, facts)  # which may be published under another name by now
    url = hub.publish(folder.model, recipe.hub, again=command(folder, recipe))
    console.show_rows("published", [("model", url)])


def command(folder: RunFolder, recipe: Recipe) -> str:
    """What publishes the run, whatever hub section its folder has."""
    return f"hf-lm publish {console.short(folder.path)} --set hub.model_id={recipe.hub.model_id}"


@contextmanager
def saves(folder: RunFolder, recipe: Recipe) -> Iterator[Callable[[Path], None]]:
    """Upload what is saved, beside training, if the recipe asks for it.

    Yields:
        A function to call with each checkpoint, before an older one is deleted.
    """
    if recipe.hub.push != "every_save" or not folder.writes:
        yield lambda checkpoint: None
        return
    place = folder.path / hub.STAGING

    def put_card(model: Path, step: int) -> None:
        facts = Facts.of(recipe, folder.provenance, folder.rows(), {})
        write_card(model, facts, step=step)

    shutil.rmtree(place, ignore_errors=True)  # what a killed run left
    uploads = Uploads(
        place, recipe.hub, describe=put_card, again=command(folder, recipe), say=console.show_note
    )
    yield uploads.offer
    uploads.close()  # a run that a signal or an error ends waits for no upload
