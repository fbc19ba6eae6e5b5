"""Upload the allowed files of a finished model in one commit.

Only files with an allowed name are copied to a staging directory and uploaded from there; symbolic
links are not followed. A busy Hub, a commit by someone else, a cut connection and a lost reply are
retried until a deadline. The client sends only what the Hub does not have, so repeating an upload
that did arrive changes nothing.
"""

from __future__ import annotations

import fnmatch
import json
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

from hf_lm.errors import HfLmError, RecipeError, UploadError
from hf_lm.hub.retry import DEADLINE, retry, safe_error_message
from hf_lm.recipe import HubRecipe
from hf_lm.system.files import read_json

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
    """Upload a model in one commit, which also deletes allowed files that the model does not have.

    Args:
        model: the directory of the model.
        recipe: the repository to upload to.
        retry_command: the command that uploads the model again, for the error message.
        tag: a name for the commit, such as "step-400".

    Returns:
        The address of the commit.

    Raises:
        UploadError: nothing was uploaded; the repository and the local model are unchanged.
    """
    size = 0
    try:
        with stage_files(model) as staging:
            size = sum(path.stat().st_size for path in staging.iterdir())
            return retry(partial(commit_folder, staging, recipe, tag), deadline=DEADLINE)
    except HfLmError:
        raise
    except Exception as error:  # Refused, not connected, in offline mode, or a full disk.
        raise UploadError(
            f"{recipe.model_id}: not uploaded ({size / 1e6:,.1f} MB): {safe_error_message(error)}; "
            f"the model is in {model}, and `{retry_command}` tries again"
        ) from None


def commit_folder(staging: Path, recipe: HubRecipe, tag: str) -> str:
    """Upload a directory in one commit, and return the address of the commit."""
    logging.set_verbosity_error()  # The client warns if an upload changes nothing.
    if not sys.stderr.isatty():
        disable_progress_bars()
    api, name = HfApi(), str(recipe.model_id)
    commit = api.upload_folder(
        repo_id=name,
        folder_path=staging,
        commit_message=f"Model at {tag}" if tag else "Model",
        delete_patterns=[*ALLOWED_FILES],
    )
    if tag:
        api.create_tag(name, tag=tag, revision=commit.oid, exist_ok=True)
    return str(commit.commit_url)


@contextmanager
def stage_files(model: Path) -> Iterator[Path]:
    """Copy the files that are published to a directory beside the model; delete it afterwards.

    Raises:
        UploadError: a file contains the token.
    """
    staging = model.parent / STAGING
    shutil.rmtree(staging, ignore_errors=True)  # leftovers of a killed upload
    staging.mkdir()
    try:
        for entry in sorted(os.scandir(model), key=lambda entry: entry.name):
            is_regular = stat.S_ISREG(entry.stat(follow_symlinks=False).st_mode)
            if is_regular and is_published(entry.name):
                shutil.copyfile(entry.path, staging / entry.name, follow_symlinks=False)
        check_no_token(staging)
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def check_adapter_base(model: Path) -> None:
    """Check that others can load what adapters belong to.

    Raises:
        RecipeError: it is a folder of this machine.
    """
    path = model / "adapter_config.json"
    base = read_json(path)["base_model_name_or_path"] if path.is_file() else None
    if base and Path(base).is_absolute():
        raise RecipeError(
            f"{path}: base_model_name_or_path = {json.dumps(base)}: is a folder of this machine, "
            "so others cannot load the adapters; train with model.lora.merge, or publish the base "
            "first and name its Hub id as model.pretrained"
        )


def check_no_token(folder: Path) -> None:
    """Check that no file of a directory contains the token.

    Raises:
        UploadError: a file does.
    """
    token = (get_token() or "").encode()
    for path in folder.iterdir():
        if token and path.stat().st_size and memory_map(path).find(token) >= 0:
            raise UploadError(f"{path.name}: contains your token; nothing was uploaded")


def memory_map(path: Path) -> mmap.mmap:
    """Map a file into memory without reading it as a whole."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def is_published(name: str) -> bool:
    """Return whether a file of this name may be uploaded."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in ALLOWED_FILES)
