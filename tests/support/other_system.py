"""The `hf-lm` command without what only POSIX systems have, and with processes that are spawned.

    python tests/support/other_system.py run RECIPE
    python -m pytest -p tests.support.other_system     # tests that use these parts themselves fail

Stands in for Windows as far as Linux can: the modules and names are gone that Python lacks there,
files are locked through `msvcrt`, whose lock is made of that of Linux, and no folder can be opened.
"""

import fcntl
import multiprocessing
import os
import shutil
import signal
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import psutil

MODULES = ("fcntl", "resource", "grp", "pwd", "termios")
SIGNALS = ("SIGHUP", "SIGUSR1", "SIGUSR2")
OS_NAMES = ("sched_getaffinity", "O_DIRECTORY", "O_NOFOLLOW", "killpg", "setsid")
open_file, delete = os.open, Path.unlink


def msvcrt() -> ModuleType:
    """Make the module of Windows that locks bytes of a file from its position on."""
    module: Any = ModuleType("msvcrt")
    module.LK_NBLCK = 2

    def locking(handle: int, mode: int, count: int) -> None:
        """Lock bytes without waiting."""
        position = os.lseek(handle, 0, os.SEEK_CUR)
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB, count, position)

    module.locking = locking
    return module


def open_no_folder(path: Any, flags: int, *args: Any, **options: Any) -> int:
    """Open a file as Windows does, which refuses folders."""
    if Path(path).is_dir():
        raise PermissionError(13, "Permission denied", str(path))
    return open_file(path, flags, *args, **options)


def delete_closed(path: Path, missing_ok: bool = False) -> None:
    """Delete a file as Windows does, which refuses one that is open."""
    opened = [os.path.realpath(handle) for handle in Path("/proc/self/fd").iterdir()]
    if str(path.resolve()) in opened:
        raise PermissionError(13, "The process cannot access the file", str(path))
    delete(path, missing_ok=missing_ok)


def become_another_system() -> None:
    """Remove what Windows lacks from this process."""
    for name in ("datasets", "torch", "transformers.trainer"):
        import_module(name)  # libraries take their own parts before these are gone
    modules: dict[str, Any] = {"msvcrt": msvcrt(), **dict.fromkeys(MODULES)}
    sys.modules.update(modules)
    for module, names in ((signal, SIGNALS), (os, OS_NAMES)):
        for name in names:
            delattr(module, name)
    memory = SimpleNamespace(rss=2**28, peak_wset=2**29)
    replaced: list[tuple[Any, str, Any]] = [
        (os, "open", open_no_folder),
        (shutil, "_use_fd_functions", False),  # to delete a folder, which it would open
        (Path, "unlink", delete_closed),
        (psutil.Process, "memory_info", lambda self: memory),
    ]
    for owner, name, value in replaced:
        setattr(owner, name, value)
    multiprocessing.set_start_method("spawn", force=True)


def pytest_load_initial_conftests() -> None:
    """Remove it from the process of a test, before anything of hf_lm is imported."""
    become_another_system()


if __name__ == "__main__":
    become_another_system()
    from hf_lm.cli import main

    sys.exit(main())
