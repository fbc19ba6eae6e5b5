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

# The files of every checkpoint of this format; there may be others, such as a tokenizer.
WEIGHTS, OPTIMIZER, RNG_STATE = "model.safetensors", "optimizer.safetensors", "random.safetensors"
STATE_JSON, TRAINER_STATE = "state.json", "trainer_state.json"
REQUIRED = {WEIGHTS, OPTIMIZER, RNG_STATE, STATE_JSON, TRAINER_STATE}

# Names without a directory and without a format that is unpickled.
FILE = re.compile(r"[a-z][a-z0-9_-]*\.(json|safetensors|txt|jinja)")

CHUNK = 2**20  # bytes hashed at once
OPEN_FLAGS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # Windows has neither


def verify(checkpoint: Path) -> Iterator[str]:
    """Yield a line for each problem of a checkpoint; no file is run or unpickled."""
    manifest = read_manifest(checkpoint)
    if manifest is None:
        yield f"{MANIFEST} is missing or damaged"
        return
    if f"checkpoint-{manifest.get('step')}" != checkpoint.name:
        yield f"{MANIFEST} is of step {manifest.get('step')}"
    listed = manifest["files"]
    for name in sorted({*listed, *REQUIRED}):
        try:
            digest = file_digest(checkpoint / name)
        except OSError as error:
            yield f"{name}: {error.strerror or error}"
            continue
        if digest != listed.get(name):
            yield f"{name} is damaged"
    for name in sorted({entry.name for entry in os.scandir(checkpoint)} - {*listed, MANIFEST}):
        yield f"{name!r} is not one of its files"


def read_manifest(checkpoint: Path) -> dict[str, Any] | None:
    """Read the manifest of a checkpoint; return None if it is missing, damaged or not ours."""
    try:
        with open_regular(checkpoint / MANIFEST) as file:
            text = file.read(2**24).decode()
        manifest = json.loads(text)
        del manifest["sha256"]
        names = [*manifest["files"]]
        is_undamaged = manifest_text(manifest) == text and isinstance(manifest["format"], int)
        has_plain_names = all(FILE.fullmatch(name) for name in names)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return manifest if is_undamaged and has_plain_names else None


def manifest_text(manifest: Mapping[str, Any]) -> str:
    """Return the text of a manifest file, which ends with the SHA-256 of the manifest."""
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    return json.dumps({**manifest, "sha256": digest}, indent=2) + "\n"


def check_format(checkpoint: Path) -> None:
    """Check that this version can read a checkpoint, so that a newer one is not quarantined.

    Raises:
        MismatchError: a newer version of hf_lm wrote it.
    """
    manifest = read_manifest(checkpoint)
    if manifest is not None and manifest["format"] > FORMAT:
        raise MismatchError(
            f"{checkpoint}: has format {manifest['format']}, and this version of hf_lm reads "
            f"format {FORMAT}; install a newer version, or start over with --fresh"
        )


def file_digest(path: Path) -> dict[str, Any]:
    """Return the size and SHA-256 of a regular file.

    Raises:
        OSError: it cannot be read, or is not a regular file.
    """
    digest, size = hashlib.sha256(), 0
    with open_regular(path) as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return {"size": size, "sha256": digest.hexdigest()}


def open_regular(path: Path) -> Any:
    """Open a regular file for reading; opening a link, pipe or folder fails and never waits.

    Raises:
        OSError: it is missing, or is not a regular file.
    """
    if path.is_symlink():
        raise OSError(errno.EINVAL, "is not a regular file", str(path))
    handle = os.open(path, os.O_RDONLY | OPEN_FLAGS)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "is not a regular file", str(path))
    return os.fdopen(handle, "rb")
