"""Download a published recipe and its files."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    LocalEntryNotFoundError,
)

from hf_lm.errors import RecipeError
from hf_lm.hub.retry import API_DEADLINE, retry, safe_error_message
from hf_lm.recipe.published import PRIVATE_KEYS
from hf_lm.recipe.strict_json import read_raw

PREFIX = "hub:"


def fetch_recipe(name: str) -> dict[str, Any]:
    """The recipe of a published model, by `hub:USER/MODEL[@REVISION]`.

    A stranger's says neither where the run is written here, nor where its model is published.
    """
    raw = read_raw(fetch_file(name, "recipe.json"))
    return {key: value for key, value in raw.items() if key not in PRIVATE_KEYS}


def fetch_file(name: str, file: str) -> Path:
    """A small file of a published model, by `hub:USER/MODEL[@REVISION]`.

    Raises:
        RecipeError: there is no such model or file, or the Hub is out of reach.
    """
    model, _, revision = name.removeprefix(PREFIX).partition("@")
    try:
        fetch = partial(hf_hub_download, model, file, revision=revision or None)
        return Path(retry(fetch, deadline=API_DEADLINE))
    except LocalEntryNotFoundError:
        raise RecipeError(f"{name}: {file} is not here, and the Hub is out of reach") from None
    except EntryNotFoundError:
        raise RecipeError(f"{name}: holds no {file}; it was not published by hf_lm") from None
    except Exception as error:  # as above
        raise RecipeError(f"{name}: {safe_error_message(error)}") from None
