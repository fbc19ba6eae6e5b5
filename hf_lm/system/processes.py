"""Processes: rank, world size, cores and the launcher."""

from __future__ import annotations

import ctypes
import os
import signal

import psutil

PR_SET_PDEATHSIG = 1  # prctl(2)


def rank() -> int:
    """Return the rank of this process among all processes of the run; 0 without a launcher."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Return the number of processes of the run, on all machines."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_world_size() -> int:
    """Return the number of processes of the run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", str(world_size())))


def is_main_process() -> bool:
    """Return whether this is the process that writes files and prints for all."""
    return rank() == 0


def usable_cores(*, physical: bool = False) -> int:
    """Return the number of CPU cores that this process may use.

    Args:
        physical: count at most the physical cores, for work that fills the units of a core.
    """
    has_affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    return min(cores, psutil.cpu_count(logical=False) or cores) if physical else cores


def launched() -> bool:
    """Return whether `torchrun` or `accelerate launch` started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ or "ACCELERATE_MIXED_PRECISION" in os.environ


def end_with_launcher() -> None:
    """Ask Linux to send SIGHUP to this process when its launcher dies.

    `accelerate launch` does not forward signals, so its child process would otherwise train on
    without a parent.
    """
    if launched() and hasattr(ctypes.CDLL(None), "prctl"):
        parent = os.getppid()
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGHUP))
        if os.getppid() != parent:  # The launcher died before prctl, so Linux sends no signal.
            os.kill(os.getpid(), signal.SIGHUP)
