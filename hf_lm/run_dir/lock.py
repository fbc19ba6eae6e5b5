"""Lock an output directory, so that only one run at a time writes there.

The kernel holds the lock, on the file `.lock`, so it ends with its process, even if that is killed.
The text of the file names the owner for people, and for machines that share the directory but not
the locks.

`filelock`, which the data cache uses, would not make this shorter: creating and removing the
directory, naming the owner and file systems without locks remain, and its acquire without waiting
reports a file that another run has just removed as locked (filelock 4.2).
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from hf_lm.errors import LockedError
from hf_lm.system.file_lock import delete_locked, lock_file

LOCK = ".lock"
BOOT = Path("/proc/sys/kernel/random/boot_id")  # the same in all containers of a machine


@contextmanager
def lock_directory(folder: Path, *, force: bool = False) -> Iterator[bool]:
    """Lock a directory; create it if it does not exist, and remove it if it is empty at the end.

    If two runs start at the same time, the one that created the directory may be the one that is
    refused, so both remove it when it is empty. The parent directories are removed by the run that
    created them.

    Args:
        folder: the output directory.
        force: take the lock over from a process of another machine, which cannot be checked.

    Yields:
        Whether the file system supports locks.

    Raises:
        LockedError: another run holds the lock.
        OSError: the directory cannot be written to.
    """
    created = [path for path in folder.parents if not path.exists()]
    try:
        with hold_lock_file(folder / LOCK, force=force) as is_exclusive:
            yield is_exclusive
    finally:
        with suppress(OSError):  # raised by the first directory that is not empty
            for empty_folder in (folder, *created):
                empty_folder.rmdir()


@contextmanager
def hold_lock_file(path: Path, *, force: bool) -> Iterator[bool]:
    """Lock a file, name this process in it, and delete it at the end; see `lock_directory`."""
    file, is_exclusive = open_lock_file(path)
    with file:
        owner = parse_owner(file)
        if owner and not is_this_machine(owner) and not force:
            raise LockedError(locked_message(path.parent, owner))
        write_owner(file)
        try:
            yield is_exclusive
        finally:
            delete_locked(file, path)


def open_lock_file(path: Path) -> tuple[TextIO, bool]:
    """Open and lock a file, and create its directory.

    Returns:
        The open file, and whether it is locked: False if the file system has no locks.

    Raises:
        LockedError: another process holds the lock.
    """
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:
            continue  # A run that ended has just removed the directory.
        file = os.fdopen(handle, "r+", encoding="utf-8")
        try:
            is_exclusive = lock_file(file)
        except OSError:
            owner = parse_owner(file)
            file.close()
            raise LockedError(locked_message(path.parent, owner)) from None
        is_same = path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno()))
        if is_same or not is_exclusive:
            return file, is_exclusive
        file.close()  # A run that ended has just removed the file.


def read_owner(folder: Path) -> dict[str, object]:
    """Read which run holds a directory, or was killed while it held it.

    The process that holds the lock must not call this: POSIX releases a lock when its process
    closes any descriptor of the file.

    Returns:
        The host, boot id, pid and start of its process; empty if the directory is free.
    """
    try:
        with (folder / LOCK).open(encoding="utf-8") as file:
            return parse_owner(file)
    except OSError:
        return {}


def is_this_machine(owner: Mapping[str, object]) -> bool:
    """Return whether the owner is a process of this machine, whose kernel has its lock."""
    return owner.get("host") == socket.gethostname() or owner.get("boot") == boot_id()


def locked_message(folder: Path, owner: Mapping[str, object]) -> str:
    """Name the owner of a directory, and what to do about it."""
    pid, host, start = (owner.get(name, "?") for name in ("pid", "host", "start"))
    remedy = "if it is gone, take it over with --force-unlock"
    if not owner or is_this_machine(owner):
        remedy = "wait for it, end it, or name another folder"
    return (
        f"output_dir = {json.dumps(str(folder))}: another run holds it, "
        f"process {pid} on {host} since {start}; {remedy}"
    )


def parse_owner(file: TextIO) -> dict[str, object]:
    """Read the owner from a lock file; empty if it is not a JSON object, as after a crash."""
    file.seek(0)
    try:
        owner = json.loads(file.read(2**12) or "{}")
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def write_owner(file: TextIO) -> None:
    """Write this process into a lock file."""
    start = time.strftime("%Y-%m-%d %H:%M:%S")
    owner = {"host": socket.gethostname(), "boot": boot_id(), "pid": os.getpid(), "start": start}
    file.seek(0)
    file.truncate()
    json.dump(owner, file)
    file.flush()


def boot_id() -> str | None:
    """Return the id that Linux draws when this machine starts; None on other systems."""
    return BOOT.read_text().strip() if BOOT.exists() else None
