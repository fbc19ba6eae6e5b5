"""Turn failures of memory, workers and connections into one-line messages with a remedy."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import distributed

from hf_lm.errors import DataError, HfLmError, RecipeError
from hf_lm.upstream import OUT_OF_MEMORY, PEER_LOST, WORKER_KILLED

SIGNAL_DELAY = 1.0  # seconds within which the operating system reports a killed process


@contextmanager
def explain_failures(micro_batch_size: int) -> Iterator[None]:
    """Turn failures of memory, workers and connections into one line with a remedy.

    Args:
        micro_batch_size: the value that the message names.

    Raises:
        RecipeError: a step needs more memory than there is.
        DataError: a worker process of the DataLoader was killed.
        HfLmError: another process of the run has ended.
    """
    try:
        with surface_worker_death():
            yield
    except (MemoryError, RuntimeError) as error:
        is_memory_error = isinstance(error, (MemoryError, torch.OutOfMemoryError))
        if is_memory_error or OUT_OF_MEMORY.search(str(error)):
            raise RecipeError(
                f"training.micro_batch_size = {micro_batch_size}: out of memory; use a smaller "
                "one, a smaller data.block_size or model, or "
                "training.activation_checkpointing; the same command continues"
            ) from None
        if WORKER_KILLED.search(str(error)):
            raise DataError(
                "training.dataloader_num_workers: a worker was killed, usually because memory "
                "or /dev/shm is full; use fewer, or 0; the same command continues"
            ) from None
        if distributed.is_initialized() and PEER_LOST.search(str(error)):
            raise HfLmError(
                "another process of the run has ended, so this one cannot go on; the reason is in "
                "the lines of that process and in status.json; the same command continues"
            ) from None
        raise


@contextmanager
def surface_worker_death() -> Iterator[None]:
    """Wait for torch's report of a killed worker when its broken connection is noticed first."""
    try:
        yield
    except (ConnectionError, EOFError):
        time.sleep(SIGNAL_DELAY)  # torch's handler of SIGCHLD raises here
        raise
