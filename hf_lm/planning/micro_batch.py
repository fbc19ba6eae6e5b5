"""Find the largest micro-batch that fits a GPU, by trial.

Training steps are tried because the memory that libraries and the allocator need besides tensors is
not known in advance. On a CPU a trial would swap, or the kernel would kill the process; the
estimate of plan.py is used there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from accelerate import PartialState
from accelerate.utils import find_executable_batch_size, gather_object
from transformers import PreTrainedModel

from hf_lm.errors import RecipeError
from hf_lm.upstream import checkpointing_name


def find_micro_batch(
    model: PreTrainedModel,
    sizes: Sequence[int],
    *,
    block_size: int,
    dtype: torch.dtype,
    other_memory: int,
    activation_checkpointing: bool,
) -> int:
    """Find the largest micro-batch size that fits on every process; the model stays on its GPU.

    Args:
        model: the model to train.
        sizes: the possible sizes, in descending order.
        block_size: tokens of a block.
        dtype: the type of matrix products.
        other_memory: bytes that a run needs besides weights, gradients and activations.
        activation_checkpointing: whether activations are computed again in the backward pass.

    Raises:
        RecipeError: the smallest size does not fit.
    """
    model.to(cast("Any", PartialState().device)).train()
    if activation_checkpointing:
        getattr(model, f"{checkpointing_name()}_enable")()
    remaining_sizes = iter(sizes)

    def next_size() -> int:
        """Return the next smaller size."""
        for size in remaining_sizes:
            return size
        raise RecipeError(
            "training.micro_batch_size: not even one block fits the memory of this GPU; use a "
            "smaller model or data.block_size, or training.activation_checkpointing"
        )

    @find_executable_batch_size(starting_batch_size=next_size(), reduce_batch_size_fn=next_size)
    def try_size(size: int) -> int:
        """Return the size if a training step of it fits."""
        probe_step(model, size, block_size=block_size, dtype=dtype, other_memory=other_memory)
        return size

    largest = min(gather_object([try_size()]))
    model.zero_grad()
    if activation_checkpointing:  # the trainer turns it on again
        getattr(model, f"{checkpointing_name()}_disable")()
    return largest


def probe_step(
    model: PreTrainedModel, blocks: int, *, block_size: int, dtype: torch.dtype, other_memory: int
) -> None:
    """Compute the loss and gradient of a micro-batch while other memory is allocated."""
    device = model.device
    other = torch.empty(other_memory, dtype=torch.uint8, device=device)
    ids = torch.zeros(blocks, block_size, dtype=torch.long, device=device)
    with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
        loss = model(input_ids=ids, labels=ids, shift_labels=ids, use_cache=False).loss
    loss.backward()
    del other
