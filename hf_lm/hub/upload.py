"""Upload the allowed files of a finished model in one commit.

What leaves the machine is copied by name into a folder of its own first: no other file, and nothing
behind a link. A busy Hub, another's commit, a cut connection and a lost reply are tried again until
a deadline. The client sends what the Hub does not have already, so trying again what did arrive
changes nothing.
"""

from __future__ import annotations

import fnmatch
import mmap
import os
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from huggingface_hub import HfApi, get_token, logging
from huggingface_hub.utils import disable_progress_bars

from hf_lm.errors import HfLmError, UploadError
from hf_lm.hub.retry import DEADLINE, retry, safe_error_message
from hf_lm.recipe import HubRecipe

ALLOWED_FILES = (
    *("README.md", "recipe.json", "metrics.json", "provenance.json", "loss.png"),
    *("config.json", "generation_config.json", "model.safetensors.index.json"),
    *("model.safetensors", "model-?????-of-?????.safetensors", "adapter_model.safetensors"),
    *("adapter_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"),
    "chat_template.jinja",
)


STAGING = ".publish"  # beside the model


def publish(model: Path, recipe: HubRecipe, *, retry_command: str, tag: str = "") -> str:
    """Upload a model in one commit; whatever the Hub holds of ours besides is deleted in it.

    Args:
        model: its folder.
        recipe: where to.
        retry_command: the command that tries again.
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
            return retry(partial(commit, staging, recipe, tag), deadline=DEADLINE)
    except HfLmError:
        raise
    except Exception as error:  # refusals, connections, offline mode, a full disk
        raise UploadError(
            f"{recipe.model_id}: not uploaded ({size / 1e6:,.1f} MB): {safe_error_message(error)}; "
            f"the model is in {model}, and `{retry_command}` tries again"
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
        delete_patterns=[*ALLOWED_FILES],
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


def is_published(name: str) -> bool:
    """Whether a file of this name leaves the machine."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in ALLOWED_FILES)
