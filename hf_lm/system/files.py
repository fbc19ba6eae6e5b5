"""Files: fsync, atomic replacement, SHA-256, and operating-system errors."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hf_lm.upstream import OS_ERROR

SYNCS_FOLDERS = hasattr(os, "O_DIRECTORY")  # Windows opens no folder, and has names in a journal
NO_FSYNC = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS}  # raised by file systems without fsync

Write = Callable[[Path], None]


def fsync(path: Path) -> bool:
    """Flush a file, or the names in a directory, to the disk.

    Returns:
        False if the file system has no fsync.

    Raises:
        OSError: the disk is full or broken.
    """
    if path.is_dir() and not SYNCS_FOLDERS:
        return True
    handle = os.open(path, os.O_RDONLY if SYNCS_FOLDERS else os.O_RDWR)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in NO_FSYNC:
            raise
        return False
    finally:
        os.close(handle)
    return True


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old text or the new text, also after a crash.

    Args:
        path: the file; its staging file has the same name with a dot in front.
        text: the whole new content.

    Raises:
        OSError: the disk is full or broken; the old file is unchanged.
    """
    staging = path.with_name(f".{path.name}")
    try:
        staging.write_text(text, encoding="utf-8", newline="\n")
        fsync(staging)
        staging.replace(path)
        fsync(path.parent)
    finally:
        staging.unlink(missing_ok=True)


@contextmanager
def replace_directory(
    folder: Path, *, staging: Path | None = None, durable: bool = False
) -> Iterator[Path]:
    """Fill a staging directory, and rename it to its final name when the block ends.

    An older directory of that name is renamed first and deleted last, so that a crash never leaves
    half of a directory under the final name. If the block raises, the older directory stays.

    Args:
        folder: the final name.
        staging: the name to use meanwhile; ".NAME.partial" beside the folder by default.
        durable: flush the files before the rename, and the rename itself, to the disk.

    Yields:
        The staging directory, which is empty.
    """
    staging = staging or folder.with_name(f".{folder.name}.partial")
    old = folder.with_name(f".{folder.name}.old")
    for leftover in (staging, old):  # from a process that was killed
        remove(leftover)
    staging.mkdir(parents=True)
    try:
        yield staging
        if durable:
            for path in (*staging.iterdir(), staging):
                fsync(path)
        if folder.exists():
            folder.rename(old)
        staging.rename(folder)
    except BaseException:
        remove(staging)
        raise
    if durable:
        fsync(folder.parent)
    remove(old)


def remove(path: Path) -> None:
    """Delete a directory; ignore that it does not exist, and errors."""
    shutil.rmtree(path, ignore_errors=True)


def size_of(folder: Path) -> int:
    """Return the number of bytes of the files in a directory; 0 if there is no directory."""
    return sum(entry.stat().st_size for entry in os.scandir(folder)) if folder.is_dir() else 0


def sha256(path: Path) -> str:
    """Return the SHA-256 of the bytes of a file, as hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def json_safe(value: object) -> object:
    """Replace NaN and infinity, which JSON does not have, by the strings "NaN" and "Infinity"."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {key: json_safe(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_safe(item) for item in value]
    return value


@contextmanager
def unwrap_os_errors(path: Path | str) -> Iterator[None]:
    """Raise operating-system errors as OSError.

    Libraries written in Rust, such as safetensors, put the error number into the text of an error
    of their own ("os error 28").

    Args:
        path: the file name that the OSError gets.

    Raises:
        OSError: a system call failed.
    """
    try:
        yield
    except Exception as error:
        number = OS_ERROR.search(str(error))
        if isinstance(error, OSError) or number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None


def text_file(text: str) -> Write:
    """Return a function that writes a text to a path."""

    def write(path: Path) -> None:
        path.write_text(text, encoding="utf-8")

    return write


def json_file(value: object) -> Write:
    """Return a function that writes a value to a path as JSON; later changes are not written."""
    return text_file(json.dumps(value, indent=2))


def read_json(path: Path) -> Any:
    """Read the value of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))
