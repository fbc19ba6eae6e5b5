"""Child processes that hold locks, and what became of them."""

import os
import time
from collections.abc import Callable
from pathlib import Path

from hf_lm.data.cache import build_once
from hf_lm.errors import LockedError
from hf_lm.run_dir.lock import locked


def child(work: Callable[[], object]) -> int:
    """Start a process that does some work; its pid."""
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


def ended(pid: int) -> int:
    """The exit code of a child."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def hold(folder: Path, held: Path, *, seconds: float = 60) -> None:
    """Hold a folder, and say so."""
    with locked(folder):
        held.touch()
        time.sleep(seconds)


def wait_for(path: Path) -> None:
    """Until a child has got there."""
    end = time.monotonic() + 10
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.001)
    assert path.exists()


def in_child(work: Callable[[], object]) -> int:
    """Run in a fork; its exit code."""
    child = os.fork()
    if not child:
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def slow_build(calls: str) -> str:
    """Build one entry slowly and take down that it was built; its folder."""

    def build(folder: Path) -> None:
        time.sleep(0.5)
        (folder / "made").write_text("here")
        with Path(calls).open("a") as file:
            file.write("built\n")

    return str(build_once("test", "key", build))
