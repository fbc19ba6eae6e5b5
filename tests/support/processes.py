"""Start child processes that hold locks or build data, and read their exit codes."""

import os
import time
from collections.abc import Callable
from pathlib import Path

from hf_lm.data.cache import build_once
from hf_lm.errors import LockedError
from hf_lm.run_dir.lock import lock_directory


def child(work: Callable[[], object]) -> int:
    """Fork a process that does some work, and return its pid."""
    pid = os.fork()
    if not pid:
        try:
            work()
        except LockedError as error:
            os._exit(error.exit_code)
        except BaseException:
            os._exit(1)
        os._exit(0)
    return pid


def exit_code(pid: int) -> int:
    """Wait for a child process and return its exit code."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def hold(folder: Path, marker: Path, *, seconds: float = 60) -> None:
    """Lock a directory for some seconds, and create a marker file once it is locked."""
    with lock_directory(folder):
        marker.touch()
        time.sleep(seconds)


def wait_for(path: Path) -> None:
    """Wait up to 10 seconds until a file exists."""
    end = time.monotonic() + 10
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.001)
    assert path.exists()


def in_child(work: Callable[[], object]) -> int:
    """Run a function in a forked process and return its exit code."""
    return exit_code(child(work))


def slow_build(calls: str) -> str:
    """Build one cache entry slowly, log the build in a file, and return the directory."""

    def build(folder: Path) -> None:
        time.sleep(0.5)
        (folder / "made").write_text("here")
        with Path(calls).open("a") as file:
            file.write("built\n")

    return str(build_once("test", "key", build))
