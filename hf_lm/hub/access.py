"""Check token, repository and connection before training."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import httpx2
from huggingface_hub import HfApi, constants, get_session, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    RepositoryNotFoundError,
)

from hf_lm.errors import RecipeError
from hf_lm.hub.retry import API_DEADLINE, retry, safe_error_message
from hf_lm.recipe import HubRecipe

REACHING, TRIES = 1.0, 2  # seconds for the Hub to answer at all, before what is cached is used


HUB = "https://huggingface.co"


def check_write_access(recipe: HubRecipe, *, create: bool = True) -> list[str]:
    """Find out, before anything is trained, whether the model could be uploaded.

    Args:
        recipe: where to.
        create: make the repository, if there is none.

    Returns:
        Notes.

    Raises:
        RecipeError: there is no token, it may not write there, or all could read what is meant to
            be private.
    """
    key = f"hub.model_id = {json.dumps(recipe.model_id)}"
    remedy = 'or set hub.push to "never" and publish later with `hf-lm publish`'
    check_endpoint()
    if get_token() is None:
        raise RecipeError(f"{key}: no token; `hf auth login` or set HF_TOKEN, {remedy}")
    try:
        private = find_repository(recipe, create=create)
    except (HfHubHTTPError, httpx2.HTTPError, OSError, ValueError) as error:
        raise RecipeError(f"{key}: {safe_error_message(error)}; mend it, {remedy}") from None
    if recipe.private and private is False:
        raise RecipeError(
            f"{key}: is public, and hub.private = true; make it private, name another, or set "
            "hub.private to false"
        )
    notes = [f"{recipe.model_id} will be made on the Hub"] if private is None else []
    return [*notes, *([] if constants.ENDPOINT == HUB else [f"the Hub is {constants.ENDPOINT}"])]


def find_repository(recipe: HubRecipe, *, create: bool) -> bool | None:
    """Whether the repository is private, having seen that one may write there; None without one."""
    api, name = HfApi(), str(recipe.model_id)
    ask = partial(retry, deadline=API_DEADLINE)
    who: Any = ask(api.whoami)
    if who.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise ValueError("the token may only read")
    if create:
        ask(partial(api.create_repo, name, private=recipe.private, exist_ok=True))
    try:
        found: Any = ask(partial(api.model_info, name))
    except RepositoryNotFoundError:
        if create:
            raise
        return None
    ask(partial(api.auth_check, name, write=True))
    return bool(found.private)


def go_offline_if_unreachable(notify: Callable[[str], object]) -> None:
    """Do without a Hub that does not answer: each file would be asked for until its retries end.

    Libraries that are imported later are told, too.

    Args:
        notify: how a person is.
    """
    if constants.HF_HUB_OFFLINE:
        return
    reason = ""
    for _ in range(TRIES):
        try:
            get_session().head(constants.ENDPOINT, timeout=REACHING)
        except (httpx2.TransportError, OSError) as error:
            reason = safe_error_message(error)
        else:
            return
    constants.HF_HUB_OFFLINE, os.environ["HF_HUB_OFFLINE"] = True, "1"
    notify(f"the Hub does not answer ({reason}); what is cached is used")


def check_endpoint() -> None:
    """A token is sent in clear to nobody but this machine."""
    url = urlsplit(constants.ENDPOINT)
    if url.scheme != "https" and url.hostname not in ("127.0.0.1", "localhost", "::1"):
        raise RecipeError(f"HF_ENDPOINT = {constants.ENDPOINT}: would be sent your token in clear")
