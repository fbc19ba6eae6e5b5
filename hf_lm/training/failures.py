"""Turn out-of-memory errors and killed data-loader workers into one-line messages with a remedy."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from hf_lm.errors import DataError, RecipeError

MEMORY = re.compile(r"can't allocate memory|not enough memory|Cannot allocate memory")


WORKER = re.compile(r"DataLoader worker .*(killed by signal|exited unexpectedly)")


TOLD = 1.0  # seconds within which the system tells of a killed process


@contextmanager
def explain_failures(micro_batch_size: int) -> Iterator[None]:
    """Say what to do when memory runs out or a worker is killed.

    Raises:
        RecipeError: a step needs more memory than there is.
        DataError: a worker of the DataLoader is gone.
    """
    try:
        with surface_worker_death():
            yield
    except (MemoryError, RuntimeError) as error:
        short = isinstance(error, (MemoryError, torch.OutOfMemoryError))
        if short or MEMORY.search(str(error)):
            raise RecipeError(
                f"training.micro_batch_size = {micro_batch_size}: the memory is not enough; use a "
                "smaller one, a smaller data.block_size or model, or "
                "training.activation_checkpointing; the same command continues"
            ) from None
        if WORKER.search(str(error)):
            raise DataError(
                "training.dataloader_num_workers: a worker was killed, as it happens where memory "
                "or /dev/shm is short; use fewer, or 0; the same command continues"
            ) from None
        raise


@contextmanager
def surface_worker_death() -> Iterator[None]:
    """Let torch say that a worker was killed, where its cut connection is met first."""
    try:
        yield
    except (ConnectionError, EOFError):
        time.sleep(TOLD)  # torch's handler of SIGCHLD raises here
        raise
