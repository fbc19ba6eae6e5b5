"""List a checkpoint's files with their sizes and SHA-256, and verify them."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hf_lm.errors import MismatchError

MANIFEST, FORMAT = "manifest.json", 1


# What a checkpoint of this format has; it may have more, such as a tokenizer.
WEIGHTS, OPTIMIZER, RNG_STATE = "model.safetensors", "optimizer.safetensors", "random.safetensors"


STATE_JSON, TRAINER_STATE = "state.json", "trainer_state.json"


REQUIRED = {WEIGHTS, OPTIMIZER, RNG_STATE, STATE_JSON, TRAINER_STATE}


FILE = re.compile(
    r"[a-z][a-z0-9_-]*\.(json|safetensors|txt|jinja)"
)  # nothing pickled, nothing outside


CHUNK = 2**20  # bytes hashed at once


def verify(checkpoint: Path) -> Iterator[str]:
    """What is wrong with a checkpoint, a line for each file; nothing is run or unpacked."""
    manifest = read_manifest(checkpoint)
    if manifest is None:
        yield f"{MANIFEST} is missing or damaged"
        return
    if f"checkpoint-{manifest.get('step')}" != checkpoint.name:
        yield f"{MANIFEST} is of step {manifest.get('step')}"
    listed = manifest["files"]
    for name in sorted({*listed, *REQUIRED}):
        try:
            found = file_digest(checkpoint / name)
        except OSError as error:
            yield f"{name}: {error.strerror or error}"
            continue
        if found != listed.get(name):
            yield f"{name} is damaged"
    for name in sorted({entry.name for entry in os.scandir(checkpoint)} - {*listed, MANIFEST}):
        yield f"{name!r} is none of its files"


def read_manifest(checkpoint: Path) -> dict[str, Any] | None:
    """The manifest of a checkpoint, or None if it has none that is whole and ours."""
    try:
        with open_regular(checkpoint / MANIFEST) as file:
            text = file.read(2**24).decode()
        manifest = json.loads(text)
        del manifest["sha256"]
        names = [*manifest["files"]]
        whole = manifest_text(manifest) == text and isinstance(manifest["format"], int)
        plain = all(FILE.fullmatch(name) for name in names)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return manifest if whole and plain else None


def manifest_text(manifest: Mapping[str, Any]) -> str:
    """A manifest as it stands on the disk, with the SHA-256 of the rest of it."""
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    return json.dumps({**manifest, "sha256": digest}, indent=2) + "\n"


def check_format(checkpoint: Path) -> None:
    """Refuse a whole checkpoint that this version cannot read, in place of setting it aside."""
    manifest = read_manifest(checkpoint)
    if manifest is not None and manifest["format"] > FORMAT:
        raise MismatchError(
            f"{checkpoint}: is of format {manifest['format']}, and this version of hf_lm reads "
            f"{FORMAT}; install a newer one, or start anew with --fresh"
        )


def file_digest(path: Path) -> dict[str, Any]:
    """The size and SHA-256 of a regular file.

    Raises:
        OSError: it is none, or cannot be read.
    """
    digest, size = hashlib.sha256(), 0
    with open_regular(path) as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return {"size": size, "sha256": digest.hexdigest()}


def open_regular(path: Path) -> Any:
    """A file to read that is no link, pipe or folder; opening never waits.

    Raises:
        OSError: it is something else, or not there.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "is no regular file", str(path))
    return os.fdopen(handle, "rb")
