"""A key in, a finished folder out: built once, by whichever process comes first.

The other processes wait at a file lock, never inside a collective, which would time out. A folder
is staged, listed with its file sizes and renamed; what does not match its list is built again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock

logger = logging.getLogger(__name__)

LIST = "files.json"


def cache_root() -> Path:
    """Where prepared data is kept: beside the caches of `datasets`, found by its own variables."""
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    return Path(os.environ.get("HF_DATASETS_CACHE", home / "datasets")).expanduser() / "hf_lm"


@cache
def code_version() -> str:
    """A hash of this package's source: prepared data does not outlive the code that made it."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def key_of(*parts: Any) -> str:
    """A key from everything the content depends on, the code included."""
    text = json.dumps([*parts, code_version()], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def sizes(folder: Path) -> dict[str, int]:
    """The files of a folder, without the list of them, and their sizes."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != LIST)
    return {str(path.relative_to(folder)): path.stat().st_size for path in sorted(files)}


def is_whole(folder: Path) -> bool:
    """Whether a folder was finished and still has every byte count it had then."""
    try:
        return json.loads((folder / LIST).read_text()) == sizes(folder)
    except (OSError, ValueError):
        return False


def build_once(kind: str, key: str, build: Callable[[Path], None]) -> Path:
    """The folder of a key; `build` fills it if it is not there, or not whole."""
    root = cache_root() / kind
    folder = root / key
    if is_whole(folder):
        return folder
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    with FileLock(root / f"{key}.lock"):
        if is_whole(folder):
            return folder
        if folder.exists():
            logger.warning("prepared data in %s is damaged; building it again", folder)
            shutil.rmtree(folder)
        staging = root / f".{key}.{os.getpid()}"
        try:
            staging.mkdir()
            build(staging)
            (staging / LIST).write_text(json.dumps(sizes(staging)))
            staging.rename(folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return folder
