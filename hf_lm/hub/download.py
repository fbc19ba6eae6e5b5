"""Download a published recipe and its files."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from hf_lm.errors import RecipeError
from hf_lm.hub.retry import API_DEADLINE, retry, safe_error_message
from hf_lm.recipe.published import PRIVATE_KEYS
from hf_lm.recipe.strict_json import read_raw

PREFIX = "hub:"


def fetch_recipe(name: str) -> dict[str, object]:
    """Download the recipe of a published model.

    Its author must not decide where a run is written on this machine, or where its model is
    published, so those keys are removed.

    Args:
        name: "hub:USER/MODEL" or "hub:USER/MODEL@REVISION".

    Raises:
        RecipeError: there is no such model or recipe, or the Hub cannot be reached.
    """
    raw = read_raw(fetch_file(name, "recipe.json"))
    return {key: value for key, value in raw.items() if key not in PRIVATE_KEYS}


def fetch_file(name: str, file: str) -> Path:
    """Download a small file of a published model.

    Args:
        name: "hub:USER/MODEL" or "hub:USER/MODEL@REVISION".
        file: the name of the file in the repository.

    Returns:
        The path of the file in the cache.

    Raises:
        RecipeError: there is no such model or file, or the Hub cannot be reached.
    """
    model, _, revision = name.removeprefix(PREFIX).partition("@")
    try:
        fetch = partial(hf_hub_download, model, file, revision=revision or None)
        return Path(retry(fetch, deadline=API_DEADLINE))
    except LocalEntryNotFoundError:
        message = f"{name}: {file} is not in the cache, and the Hub cannot be reached"
        raise RecipeError(message) from None
    except EntryNotFoundError:
        raise RecipeError(f"{name}: has no {file}; it was not published by hf_lm") from None
    except Exception as error:  # The client raises errors of HTTP, of the system and its own.
        raise RecipeError(f"{name}: {safe_error_message(error)}") from None
