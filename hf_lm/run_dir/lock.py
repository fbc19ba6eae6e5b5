"""Lock an output directory, so that one run at a time writes there.

The lock is the kernel's (POSIX, on one file), so it ends with its process, however that ends. What
the file says is for people, and for folders shared by machines that do not share locks.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hf_lm.errors import LockedError

LOCK = ".lock"


BOOT = Path("/proc/sys/kernel/random/boot_id")  # the same in all containers of a machine


UNLOCKABLE = {errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL}  # some network file systems


@contextmanager
def locked(folder: Path, *, force: bool = False) -> Iterator[bool]:
    """Hold a folder, which is made if it is not there, and removed if nothing came into it.

    Of two starts at once, the one that made the folder may be the one that is refused, so either
    removes it when it is empty; folders above it are removed by whoever made them.

    Args:
        folder: of the run.
        force: take it over from a process of another machine, which cannot be asked.

    Yields:
        Whether the file system has locks.

    Raises:
        LockedError: another run holds it.
        OSError: the folder cannot be written to.
    """
    made = [path for path in folder.parents if not path.exists()]
    try:
        with held(folder / LOCK, force=force) as exclusive:
            yield exclusive
    finally:
        with suppress(OSError):  # the first that something came into
            for empty in (folder, *made):
                empty.rmdir()


@contextmanager
def held(path: Path, *, force: bool) -> Iterator[bool]:
    """Hold a lock file, which is removed at the end; as `locked`."""
    file, exclusive = open_locked(path)
    with file:
        holder = read_holder(file)
        if holder and not is_here(holder) and not force:
            raise LockedError(refusal(path.parent, holder))
        write_holder(file)
        try:
            yield exclusive
        finally:
            path.unlink(missing_ok=True)


def open_locked(path: Path) -> tuple[Any, bool]:
    """The lock file, held, unless the file system has no locks; its folder is made.

    Raises:
        LockedError: another process holds it.
    """
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:
            continue  # the folder was removed by the run that let it go
        file = os.fdopen(handle, "r+", encoding="utf-8")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in UNLOCKABLE:
                return file, False
            holder = read_holder(file)
            file.close()
            raise LockedError(refusal(path.parent, holder)) from None
        if path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno())):
            return file, True
        file.close()  # it was removed by the run that let it go


def holder_of(folder: Path) -> Mapping[str, Any]:
    """What is said of the run that holds a folder, or was killed there; nothing if it is free."""
    try:
        with (folder / LOCK).open(encoding="utf-8") as file:
            return read_holder(file)
    except OSError:
        return {}


def is_here(holder: Mapping[str, Any]) -> bool:
    """Whether it was a process of this machine, whose lock is gone with it."""
    return holder.get("host") == socket.gethostname() or holder.get("boot") == boot()


def refusal(folder: Path, holder: Mapping[str, Any]) -> str:
    """Who holds a folder, and what to do about it."""
    pid, host, start = (holder.get(name, "?") for name in ("pid", "host", "start"))
    remedy = "if it is gone, take it over with --force-unlock"
    if not holder or is_here(holder):
        remedy = "wait for it, end it, or name another folder"
    return (
        f"output_dir = {json.dumps(str(folder))}: another run holds it, "
        f"process {pid} on {host} since {start}; {remedy}"
    )


def read_holder(file: Any) -> dict[str, Any]:
    """What the file says of the last process that held it; nothing if that let it go."""
    file.seek(0)
    try:
        found = json.loads(file.read(2**12) or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def write_holder(file: Any) -> None:
    """Say who holds it."""
    start = time.strftime("%Y-%m-%d %H:%M:%S")
    holder = {"host": socket.gethostname(), "boot": boot(), "pid": os.getpid(), "start": start}
    file.seek(0)
    file.truncate()
    json.dump(holder, file)
    file.flush()


def boot() -> str | None:
    """A name of this machine since it was started, if it has one."""
    return BOOT.read_text().strip() if BOOT.exists() else None
