"""Processes: rank, world size and the launcher."""

from __future__ import annotations

import ctypes
import os
import signal

PR_SET_PDEATHSIG = 1  # prctl(2)


def launched() -> bool:
    """Whether a launcher started this process, and not a person's shell."""
    return "TORCHELASTIC_RUN_ID" in os.environ or "ACCELERATE_MIXED_PRECISION" in os.environ


def end_with_launcher() -> None:
    """Have Linux send SIGHUP when the launcher dies.

    `accelerate launch` hands no signal on, and its child would live and write for ever.
    """
    if launched() and hasattr(ctypes.CDLL(None), "prctl"):
        parent = os.getppid()
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGHUP))
        if os.getppid() != parent:  # it died meanwhile, and nobody tells
            os.kill(os.getpid(), signal.SIGHUP)
