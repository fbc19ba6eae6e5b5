"""Processes: rank, world size and cores."""

from __future__ import annotations

import os

import psutil


def rank() -> int:
    """Return the rank of this process among all processes of the run; 0 without a launcher."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Return the number of processes of the run, on all machines."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_world_size() -> int:
    """Return the number of processes of the run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", str(world_size())))


def local_rank() -> int:
    """Return the rank of this process among the processes on this machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


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
