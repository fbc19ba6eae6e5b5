"""Files: fsync, atomic replacement, SHA-256, and operating-system errors."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

UNSYNCED = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS}  # file systems without fsync


Write = Callable[[Path], None]


def fsync(path: Path) -> bool:
    """Have a file, or the names in a folder, on the disk.

    Returns:
        Whether the file system can do that.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in UNSYNCED:
            raise
        return False
    finally:
        os.close(handle)
    return True


def remove(path: Path) -> None:
    """Delete a folder, as far as it is there and can be deleted."""
    shutil.rmtree(path, ignore_errors=True)


def size_of(folder: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(entry.stat().st_size for entry in os.scandir(folder)) if folder.is_dir() else 0


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def json_safe(value: Any) -> Any:
    """JSON has no NaN and no infinity: they are written as strings."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {key: json_safe(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_safe(item) for item in value]
    return value


@contextmanager
def unwrap_os_errors(path: Path | str) -> Iterator[None]:
    """Raise what the system said, which libraries written in Rust hide in a text.

    Raises:
        OSError: a call failed.
    """
    try:
        yield
    except Exception as error:
        number = re.search(r"os error (\d+)", str(error))
        if isinstance(error, OSError) or number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None


def text_file(text: str) -> Write:
    """Writes text."""

    def write(path: Path) -> None:
        path.write_text(text, encoding="utf-8")

    return write


def json_file(value: Any) -> Write:
    """Writes JSON, as it is now."""
    return text_file(json.dumps(value, indent=2))


def read_json(path: Path) -> Any:
    """The value of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))
