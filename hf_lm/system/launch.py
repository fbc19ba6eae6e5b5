"""The launcher that started this process: `accelerate launch` or `torchrun`.

Its file may name a precision or a way of sharding. The recipe decides the first, and the second is
refused, because training would fail in its first step.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from functools import cache

from hf_lm.errors import RecipeError

PR_SET_PDEATHSIG = 1  # prctl(2)

TRUE = {"1", "true", "t", "yes", "y", "on"}  # what accelerate takes for true

SHARDING = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism_config",
}

PRECISION = "ACCELERATE_MIXED_PRECISION"

# A launcher looks at its processes every 0.1 s; ending one of them takes Python up to a second.
LAUNCHER_SECONDS = 3.0


def launched() -> bool:
    """Return whether `torchrun` or `accelerate launch` started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ or PRECISION in os.environ


def is_set(name: str) -> bool:
    """Return whether accelerate takes a variable of the environment for true."""
    return os.environ.get(name, "").lower() in TRUE


def check_launcher() -> None:
    """Check that the launcher's file asks for nothing but DDP.

    Raises:
        RecipeError: it asks for a way of sharding.
    """
    for name, tool in SHARDING.items():
        if is_set(name):
            raise RecipeError(
                f"accelerate launch: its file asks for {tool}, which hf_lm does not train with; "
                "use DDP: --config_file accelerate_config.yaml, or distributed_type: MULTI_GPU"
            )


def use_precision(precision: str) -> str | None:
    """Let the precision of the run replace what the launcher's file says.

    TrainingArguments and the Accelerator read these variables after their arguments.

    Args:
        precision: "fp32", "bf16" or "fp16".

    Returns:
        A note if the file said something else.
    """
    for name in [name for name in os.environ if name.startswith("ACCELERATE_DYNAMO_")]:
        del os.environ[name]
    wanted, before = {"fp32": "no"}.get(precision, precision), os.environ.get(PRECISION)
    if before is None:
        return None
    os.environ[PRECISION] = wanted
    if before in ("no", wanted):
        return None
    return (
        f"accelerate's mixed_precision = {before} is not used; the run computes in {precision} "
        "(training.precision)"
    )


def end_with_launcher() -> None:
    """Ask Linux to send SIGHUP to this process when its launcher dies.

    `accelerate launch` does not forward signals, so its child process would otherwise train on
    without a parent.
    """
    if launched() and sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGHUP))
        if os.getppid() != parent:  # The launcher died before prctl, so Linux sends no signal.
            os.kill(os.getpid(), signal.SIGHUP)


@cache
def wait_for_main_process() -> None:
    """Wait once for the launcher to end this process, which it does if the main process fails.

    An error that all processes have is then reported by the main process alone, and one that only
    this process has is reported by it.
    """
    time.sleep(LAUNCHER_SECONDS)
