"""The folder of a model in, one commit on the Hub out; and a published recipe back.

What leaves the machine is copied by name into a folder of its own first: no other file, and nothing
behind a link. A busy Hub, another's commit, a cut connection and a lost reply are tried again until
a deadline. The client sends what the Hub does not have already, so trying again what did arrive
changes nothing.
"""

from __future__ import annotations

import fnmatch
import json
import mmap
import os
import random
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx2
from huggingface_hub import HfApi, constants, get_session, get_token, hf_hub_download, logging
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import disable_progress_bars

from hf_lm.errors import HfLmError, RecipeError, UploadError
from hf_lm.recipe import HubRecipe
from hf_lm.recipe.reader import read_tree

T = TypeVar("T")

PUBLISHED = (
    *("README.md", "recipe.json", "metrics.json", "provenance.json", "loss.png"),
    *("config.json", "generation_config.json", "model.safetensors.index.json"),
    *("model.safetensors", "model-?????-of-?????.safetensors", "adapter_model.safetensors"),
    *("adapter_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"),
    "chat_template.jinja",
)
PRIVATE = ("$schema", "output_dir", "hub")  # keys of a recipe that are its owner's business
STAGING = ".publish"  # beside the model
AGAIN = {408, 409, 412, 425, 429, 500, 502, 503, 504}  # what the next try may find otherwise
DEADLINE = 900.0  # seconds in which a try begins
ASKING = 15.0  # the same, before training
REACHING, TRIES = 1.0, 2  # seconds for the Hub to answer at all, before what is cached is used
SILENCE = 60.0  # seconds without a byte, after which a connection counts as cut
PREFIX, HUB = "hub:", "https://huggingface.co"


def refuse_access(recipe: HubRecipe, *, create: bool = True) -> list[str]:
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
    refuse_endpoint()
    if get_token() is None:
        raise RecipeError(f"{key}: no token; `hf auth login` or set HF_TOKEN, {remedy}")
    try:
        private = find_repository(recipe, create=create)
    except (HfHubHTTPError, httpx2.HTTPError, OSError, ValueError) as error:
        raise RecipeError(f"{key}: {told(error)}; mend it, {remedy}") from None
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
    ask = partial(retried, deadline=ASKING)
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


def settle_offline(say: Callable[[str], object]) -> None:
    """Do without a Hub that does not answer: each file would be asked for until its retries end.

    Libraries that are imported later are told, too.

    Args:
        say: how a person is.
    """
    if constants.HF_HUB_OFFLINE:
        return
    reason = ""
    for _ in range(TRIES):
        try:
            get_session().head(constants.ENDPOINT, timeout=REACHING)
        except (httpx2.TransportError, OSError) as error:
            reason = told(error)
        else:
            return
    constants.HF_HUB_OFFLINE, os.environ["HF_HUB_OFFLINE"] = True, "1"
    say(f"the Hub does not answer ({reason}); what is cached is used")


def refuse_endpoint() -> None:
    """A token is sent in clear to nobody but this machine."""
    url = urlsplit(constants.ENDPOINT)
    if url.scheme != "https" and url.hostname not in ("127.0.0.1", "localhost", "::1"):
        raise RecipeError(f"HF_ENDPOINT = {constants.ENDPOINT}: would be sent your token in clear")


def publish(model: Path, recipe: HubRecipe, *, again: str, tag: str = "") -> str:
    """Upload a model in one commit; whatever the Hub holds of ours besides is deleted in it.

    Args:
        model: its folder.
        recipe: where to.
        again: the command that tries again.
        tag: a name for the commit.

    Returns:
        The address of the commit.

    Raises:
        UploadError: it did not happen; the Hub has what it had, and the model is where it was.
    """
    size = 0
    try:
        with staged(model) as staging:
            size = sum(path.stat().st_size for path in staging.iterdir())
            return retried(partial(commit, staging, recipe, tag), deadline=DEADLINE)
    except HfLmError:
        raise
    except Exception as error:  # refusals, connections, offline mode, a full disk
        raise UploadError(
            f"{recipe.model_id}: not uploaded ({size / 1e6:,.1f} MB): {told(error)}; the model is "
            f"in {model}, and `{again}` tries again"
        ) from None


def commit(staging: Path, recipe: HubRecipe, tag: str) -> str:
    """One commit of a folder, all or nothing; its address."""
    logging.set_verbosity_error()  # of an upload that finds nothing new
    if not sys.stderr.isatty():
        disable_progress_bars()
    api, name = HfApi(), str(recipe.model_id)
    done = api.upload_folder(
        repo_id=name,
        folder_path=staging,
        commit_message=f"Model at {tag}" if tag else "Model",
        delete_patterns=[*PUBLISHED],
    )
    if tag:
        api.create_tag(name, tag=tag, revision=done.oid, exist_ok=True)
    return str(done.commit_url)


@contextmanager
def staged(model: Path) -> Iterator[Path]:
    """A folder of copies, beside the model's, of what is published; gone afterwards.

    Raises:
        UploadError: a file holds the token.
    """
    staging = model.parent / STAGING
    shutil.rmtree(staging, ignore_errors=True)  # what a killed upload left
    staging.mkdir()
    try:
        for entry in sorted(os.scandir(model), key=lambda entry: entry.name):
            regular = stat.S_ISREG(entry.stat(follow_symlinks=False).st_mode)
            if regular and is_published(entry.name):
                shutil.copyfile(entry.path, staging / entry.name, follow_symlinks=False)
        refuse_token(staging)
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def refuse_token(folder: Path) -> None:
    """No file that is published holds the token."""
    token = (get_token() or "").encode()
    for path in folder.iterdir():
        if token and path.stat().st_size and mapped(path).find(token) >= 0:
            raise UploadError(f"{path.name}: holds your token; nothing was uploaded")


def mapped(path: Path) -> mmap.mmap:
    """The bytes of a file, without reading it into memory."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def retried(attempt: Callable[[], T], *, deadline: float) -> T:
    """What an attempt returns, tried again while the Hub is busy or out of reach.

    Args:
        attempt: that may be made again.
        deadline: seconds in which a try begins.
    """
    ends, wait = time.monotonic() + deadline, 1.0
    while True:
        get_session().timeout = min(SILENCE, deadline)  # the client's own is none at all
        try:
            return attempt()
        except Exception as error:
            pause = max(asked_pause(error), wait * random.uniform(0.5, 1.0))
            if not passing(error) or time.monotonic() + pause > ends:
                raise
        time.sleep(pause)
        wait = min(2 * wait, 60.0)


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def passing(error: BaseException) -> bool:
    """Whether the next try may go better."""
    for cause in causes(error):
        if isinstance(cause, HfHubHTTPError):
            return cause.response is not None and cause.response.status_code in AGAIN
        if isinstance(cause, OfflineModeIsEnabled):  # a ConnectionError that no waiting ends
            return False
        if isinstance(cause, (httpx2.TransportError, json.JSONDecodeError, ConnectionError)):
            return True
    return False


def asked_pause(error: BaseException) -> float:
    """The seconds that the Hub asks to wait (RFC 9110, Retry-After)."""
    for cause in causes(error):
        response = getattr(cause, "response", None)
        text = response.headers.get("Retry-After", "") if response is not None else ""
        if text.isdigit():
            return float(text)
        with suppress(ValueError):
            return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    return 0.0


def told(error: BaseException) -> str:
    """An error on one line, not longer than a person reads, without the token."""
    status = next((c for c in causes(error) if isinstance(c, HfHubHTTPError)), None)
    message = (status.server_message if status else None) or str(error) or type(error).__name__
    code = f"{status.response.status_code} " if status and status.response is not None else ""
    line = " ".join(f"{code}{message}".split())
    return line.replace(get_token() or "\0", "***")[:300]  # in this order: no half of it is left


def is_published(name: str) -> bool:
    """Whether a file of this name leaves the machine."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in PUBLISHED)


def published_tree(name: str) -> dict[str, Any]:
    """The recipe of a published model, by `hub:USER/MODEL[@REVISION]`.

    A stranger's says neither where the run is written here, nor where its model is published.
    """
    tree = read_tree(published_file(name, "recipe.json"))
    return {key: value for key, value in tree.items() if key not in PRIVATE}


def published_file(name: str, file: str) -> Path:
    """A small file of a published model, by `hub:USER/MODEL[@REVISION]`.

    Raises:
        RecipeError: there is no such model or file, or the Hub is out of reach.
    """
    model, _, revision = name.removeprefix(PREFIX).partition("@")
    try:
        fetch = partial(hf_hub_download, model, file, revision=revision or None)
        return Path(retried(fetch, deadline=ASKING))
    except LocalEntryNotFoundError:
        raise RecipeError(f"{name}: {file} is not here, and the Hub is out of reach") from None
    except EntryNotFoundError:
        raise RecipeError(f"{name}: holds no {file}; it was not published by hf_lm") from None
    except Exception as error:  # as above
        raise RecipeError(f"{name}: {told(error)}") from None
