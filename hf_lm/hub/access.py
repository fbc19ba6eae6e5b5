"""Check token, repository and connection before training."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from urllib.parse import urlsplit

import httpx2
from huggingface_hub import HfApi, constants, get_session, get_token
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from hf_lm.errors import RecipeError
from hf_lm.hub.retry import API_DEADLINE, retry, safe_error_message
from hf_lm.recipe import HubRecipe

CONNECT_TIMEOUT, CONNECT_TRIES = 1.0, 2  # seconds and tries before cached files are used
HUB = "https://huggingface.co"


def check_write_access(recipe: HubRecipe, *, create: bool = True) -> list[str]:
    """Check, before training, that the model could be uploaded.

    Args:
        recipe: the repository to upload to.
        create: create the repository if it does not exist.

    Returns:
        Notes: that the repository does not exist yet, and a Hub that is not huggingface.co.

    Raises:
        RecipeError: there is no token, the token has no write access, the Hub cannot be reached,
            or the repository is public and should be private.
    """
    key = f"hub.model_id = {json.dumps(recipe.model_id)}"
    remedy = 'or set hub.push to "never" and publish later with `hf-lm publish`'
    check_endpoint()
    if get_token() is None:
        raise RecipeError(f"{key}: no token; run `hf auth login` or set HF_TOKEN, {remedy}")
    try:
        is_private = prepare_repository(recipe, create=create)
    except (HfHubHTTPError, httpx2.HTTPError, OSError, ValueError) as error:
        raise RecipeError(f"{key}: {safe_error_message(error)}; fix it, {remedy}") from None
    if recipe.private and is_private is False:
        raise RecipeError(
            f"{key}: is public, but hub.private = true; make it private, name another model, or "
            "set hub.private to false"
        )
    notes = [f"{recipe.model_id} will be created on the Hub"] if is_private is None else []
    return [*notes, *([] if constants.ENDPOINT == HUB else [f"the Hub is {constants.ENDPOINT}"])]


def prepare_repository(recipe: HubRecipe, *, create: bool) -> bool | None:
    """Check write access to a repository, and create it if asked.

    Returns:
        Whether the repository is private; None if it does not exist.

    Raises:
        ValueError: the token is read-only.
        HfHubHTTPError: the Hub refuses access.
    """
    api, name = HfApi(), str(recipe.model_id)
    user = retry(api.whoami, deadline=API_DEADLINE)
    if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise ValueError("the token is read-only")
    if create:
        create_repository = partial(api.create_repo, name, private=recipe.private, exist_ok=True)
        retry(create_repository, deadline=API_DEADLINE)
    try:
        info = retry(partial(api.model_info, name), deadline=API_DEADLINE)
    except RepositoryNotFoundError:
        if create:
            raise
        return None
    retry(partial(api.auth_check, name, write=True), deadline=API_DEADLINE)
    return bool(info.private)


def go_offline_if_unreachable(notify: Callable[[str], object]) -> None:
    """Use cached files only if the Hub cannot be reached.

    Otherwise every file would be requested until its retries end. The environment variable tells
    libraries that are imported later.

    Args:
        notify: shows a note to the user.
    """
    if constants.HF_HUB_OFFLINE:
        return
    reason = ""
    for _ in range(CONNECT_TRIES):
        try:
            get_session().head(constants.ENDPOINT, timeout=CONNECT_TIMEOUT)
        except (httpx2.TransportError, OSError) as error:
            reason = safe_error_message(error)
        else:
            return
    constants.HF_HUB_OFFLINE = True
    os.environ["HF_HUB_OFFLINE"] = "1"
    notify(f"the Hub cannot be reached ({reason}); using cached files")


def check_endpoint() -> None:
    """Check that a token is sent encrypted, or only to this machine.

    Raises:
        RecipeError: HF_ENDPOINT is another machine and does not use https.
    """
    url = urlsplit(constants.ENDPOINT)
    if url.scheme != "https" and url.hostname not in ("127.0.0.1", "localhost", "::1"):
        raise RecipeError(
            f"HF_ENDPOINT = {constants.ENDPOINT}: your token would be sent unencrypted; use https"
        )
