"""Build a directory once per content key and share it between processes.

The other processes wait at a file lock, never inside a collective, which would time out. A folder
is staged, listed with its file sizes and renamed; what does not match its list is built again.
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
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from hf_lm.system.files import replace_directory

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
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def key_of(*splits: Any) -> str:
    """A key from everything the content depends on, the code included."""
    text = json.dumps([*splits, code_version()], sort_keys=True, default=str)
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
        (folder / LIST).touch()  # when it was used last
        return folder
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    with FileLock(root / f"{key}.lock"):
        if is_whole(folder):
            return folder
        for left in root.glob(f".{key}.*"):  # by a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        if folder.exists():
            logger.warning("prepared data in %s is damaged; building it again", folder)
            shutil.rmtree(folder)
        with replace_directory(folder, staging=root / f".{key}.{os.getpid()}") as staging:
            build(staging)
            (staging / LIST).write_text(json.dumps(sizes(staging)))
    return folder


class Entry(NamedTuple):
    """One prepared folder."""

    kind: str
    key: str
    size: int  # bytes
    age: float  # days since it was used

    @property
    def folder(self) -> Path:
        """Where it is."""
        return cache_root() / self.kind / self.key


def entries() -> list[Entry]:
    """All finished folders, the last used first."""
    now = time.time()
    found = [
        Entry(
            folder.parent.name,
            folder.name,
            sum(sizes(folder).values()),
            (now - (folder / LIST).stat().st_mtime) / 86_400,
        )
        for folder in cache_root().glob("*/*")
        if (folder / LIST).is_file() and not folder.name.startswith(".")
    ]
    return sorted(found, key=lambda entry: entry.age)


def prune(days: float) -> int:
    """Remove what was not used for some days, and is not being built; the bytes that were freed."""
    freed = 0
    for entry in entries():
        lock = FileLock(f"{entry.folder}.lock", blocking=False)
        if entry.age < days:
            continue
        with contextlib.suppress(Timeout), lock:
            shutil.rmtree(entry.folder)
            freed += entry.size
    return freed
