"""Publish the model of a run: model card, upload, and uploads during training.

A run that is published nowhere imports neither the card nor the Hub client.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hf_lm.errors import DataError, RecipeError
from hf_lm.recipe import HubRecipe, Recipe
from hf_lm.run_dir.directory import RECIPE, RunDirectory
from hf_lm.terminal import console

if TYPE_CHECKING:
    from hf_lm.hub.background_upload import BackgroundUploader


def publish(run: str | Path, *, overrides: Sequence[str] = ()) -> str:
    """Upload the model of a finished run to the Hub, in one commit.

    Args:
        run: the output directory of the run.
        overrides: keys of the recipe's hub section, such as "hub.model_id=USER/NAME".

    Returns:
        The address of the commit.

    Raises:
        DataError: the directory does not hold a finished run.
        RecipeError: `hub.model_id` is missing, the token may not write there, or the model is
            adapters of a base that others do not have.
        UploadError: the Hub did not take the model; the model is where it was.

    Example:
        >>> publish("runs/small", overrides=["hub.model_id=USER/small"])
    """
    from hf_lm.hub.access import check_write_access
    from hf_lm.hub.upload import check_adapter_base
    from hf_lm.recipe import load_recipe

    run_dir = RunDirectory(Path(run).absolute())
    if not run_dir.is_complete:
        raise DataError(f"{run}: does not hold a finished run; publish the files in its model/")
    recipe = load_recipe(run_dir.path / RECIPE, overrides=overrides)
    if recipe.hub.model_id is None:
        raise RecipeError("hub.model_id: is not set; add --set hub.model_id=USER/NAME")
    check_adapter_base(run_dir.model)
    with run_dir.lock():
        check_write_access(recipe.hub)
        return publish_run(run_dir, recipe)


def check_upload(recipe: HubRecipe, run_dir: RunDirectory) -> None:
    """Check that the Hub will accept the model, if the recipe asks for an upload.

    Raises:
        RecipeError: the token may not write to `hub.model_id`, or the Hub cannot be reached.
    """
    if recipe.push == "never" or not run_dir.is_main_process:
        return
    from hf_lm.hub.access import check_write_access

    for note in check_write_access(recipe):
        console.show_note(note)


def publish_if_requested(recipe: Recipe, run_dir: RunDirectory) -> None:
    """Upload the finished model, if the recipe asks for it.

    Raises:
        UploadError: the Hub did not take the model.
    """
    if recipe.hub.push != "never" and run_dir.is_main_process:
        publish_run(run_dir, recipe)


def publish_run(run_dir: RunDirectory, recipe: Recipe) -> str:
    """Upload the model of a run with a new card and return the address of the commit.

    The card is written again because the model may be published under another name by now.

    Raises:
        UploadError: the Hub did not take the model; its message names the command that retries.
    """
    from hf_lm.hub import upload

    write_card(run_dir, recipe, run_dir.model)
    url = upload.publish(run_dir.model, recipe.hub, retry_command=retry_command(run_dir, recipe))
    console.show_rows("published", [("model", url)])
    return url


def write_card(run_dir: RunDirectory, recipe: Recipe, model: Path, step: int = 0) -> None:
    """Write the model card of a run, or of one of its checkpoints, into a model directory."""
    from hf_lm.hub import model_card

    model_card.write_card(model, run_dir.path, recipe, run_dir.log.rows(), step=step)


def retry_command(run_dir: RunDirectory, recipe: Recipe) -> str:
    """Return the shell command that publishes a run under the name in the recipe."""
    path = shlex.quote(console.short(run_dir.path))
    return f"hf-lm publish {path} --set hub.model_id={recipe.hub.model_id}"


def start_background_uploads(recipe: Recipe, run_dir: RunDirectory) -> BackgroundUploader | None:
    """Start the thread that uploads checkpoints, if the recipe asks for it.

    A run that ends by an error or a signal does not wait for uploads: call `close` only after
    training has finished.
    """
    if recipe.hub.push != "every_save" or not run_dir.is_main_process:
        return None
    from hf_lm.hub.background_upload import BackgroundUploader
    from hf_lm.hub.upload import STAGING

    staging = run_dir.path / STAGING
    shutil.rmtree(staging, ignore_errors=True)  # leftovers of a killed run
    return BackgroundUploader(
        staging,
        recipe.hub,
        write_card=partial(write_card, run_dir, recipe),
        retry_command=retry_command(run_dir, recipe),
        notify=console.show_note,
    )
