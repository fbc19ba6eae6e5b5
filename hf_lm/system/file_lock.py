"""Lock a file against other processes; the kernel ends the lock with its process, however it ends.

POSIX locks the file, Windows a byte of it. A locked byte cannot be read there, so it is one far
behind the text of the file. A file that is open cannot be deleted there.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

FAR = 2**30  # bytes
NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL}  # some network file systems


def lock_file(file: TextIO) -> bool:
    """Lock an open file without waiting.

    Returns:
        False if the file system has no locks.

    Raises:
        OSError: another process holds the lock.
    """
    try:
        if fcntl is not None:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            msvcrt: Any = import_module("msvcrt")
            os.lseek(file.fileno(), FAR, os.SEEK_SET)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return False
    return True


def delete_locked(file: TextIO, path: Path) -> None:
    """Delete a file that this process has locked, before another process can lock it if possible.

    On Windows the file is closed first; if another process has locked it by then, it stays.
    """
    if fcntl is not None:
        path.unlink(missing_ok=True)
        return
    file.close()
    with suppress(PermissionError):
        path.unlink(missing_ok=True)
