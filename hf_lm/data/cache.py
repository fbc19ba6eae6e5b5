"""Build a directory once per content key and share it between processes.

The other processes wait at a file lock, not in a collective operation, which would time out. A
directory is written under another name, listed with its file sizes, and renamed; one that does not
match its list is built again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from hf_lm.system.files import replace_directory

logger = logging.getLogger(__name__)

LIST = "files.json"


def cache_root() -> Path:
    """Return the directory of prepared data, which is inside the cache of `datasets`."""
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    return Path(os.environ.get("HF_DATASETS_CACHE", home / "datasets")).expanduser() / "hf_lm"


@cache
def code_version() -> str:
    """Hash the source of this package: data is prepared again when the code changes."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def key_of(*splits: object) -> str:
    """Make a key from everything that the content depends on, including the code."""
    text = json.dumps([*splits, code_version()], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def sizes(folder: Path) -> dict[str, int]:
    """Return the files of a directory, except for their list, with their sizes."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != LIST)
    return {str(path.relative_to(folder)): path.stat().st_size for path in sorted(files)}


def is_whole(folder: Path) -> bool:
    """Return whether a directory was finished and its files still have their sizes."""
    try:
        return json.loads((folder / LIST).read_text(encoding="utf-8")) == sizes(folder)
    except (OSError, ValueError):
        return False


def build_once(kind: str, key: str, build: Callable[[Path], None]) -> Path:
    """Return the directory of a key; `build` fills it if it is missing or damaged."""
    root = cache_root() / kind
    folder = root / key
    if is_whole(folder):
        (folder / LIST).touch()  # its time says when the data was last used
        return folder
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    with FileLock(root / f"{key}.lock"):
        if is_whole(folder):
            return folder
        for leftover in root.glob(f".{key}.*"):  # of a process that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        if folder.exists():
            logger.warning("prepared data in %s is damaged; building it again", folder)
            shutil.rmtree(folder)
        with replace_directory(folder, staging=root / f".{key}.{os.getpid()}") as staging:
            build(staging)
            (staging / LIST).write_text(json.dumps(sizes(staging)), encoding="utf-8")
    return folder


class Entry(NamedTuple):
    """A directory of prepared data.

    Attributes:
        kind: "blocks", "scans" or "tokenizers".
        key: its key.
        size: bytes.
        age: days since it was used.
    """

    kind: str
    key: str
    size: int
    age: float

    @property
    def folder(self) -> Path:
        """Its path."""
        return cache_root() / self.kind / self.key


def entries() -> list[Entry]:
    """Return all finished directories, the last used first."""
    now = time.time()
    finished = [
        Entry(
            folder.parent.name,
            folder.name,
            sum(sizes(folder).values()),
            (now - (folder / LIST).stat().st_mtime) / 86_400,
        )
        for folder in cache_root().glob("*/*")
        if (folder / LIST).is_file() and not folder.name.startswith(".")
    ]
    return sorted(finished, key=lambda entry: entry.age)


def prune(days: float) -> int:
    """Delete data that was not used for some days and is not being built; return the bytes."""
    freed = 0
    for entry in entries():
        lock = FileLock(f"{entry.folder}.lock", blocking=False)
        if entry.age < days:
            continue
        with contextlib.suppress(Timeout), lock:
            shutil.rmtree(entry.folder)
            freed += entry.size
    return freed
