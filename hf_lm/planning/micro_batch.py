"""Find the largest micro-batch that fits a GPU, by trial.

A step is tried, because what the libraries and the allocator take beside the tensors is not known
beforehand. On a CPU there is nothing to try: it swaps, or the kernel ends the process, and the
estimate of plan.py holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from accelerate import PartialState
from accelerate.utils import find_executable_batch_size, gather_object
from transformers import PreTrainedModel

from hf_lm.errors import RecipeError


def find_micro_batch(
    model: PreTrainedModel,
    sizes: Sequence[int],
    *,
    block_size: int,
    dtype: torch.dtype,
    other_memory: int,
    activation_checkpointing: bool,
) -> int:
    """The largest of some sizes on which every process can train; the model is left on its GPU.

    Args:
        model: with its weights.
        sizes: in descending order.
        block_size: tokens of a block.
        dtype: of matrix products.
        other_memory: bytes that a run takes beside weights, gradients and activations.
        activation_checkpointing: whether activations are computed again in the backward pass.

    Raises:
        RecipeError: not even the smallest one fits.
    """
    model.to(cast("Any", PartialState().device)).train()
    if activation_checkpointing:
        model.activation_checkpointing_enable()
    untried = iter(sizes)

    def smaller() -> int:
        """The next size."""
        for size in untried:
            return size
        raise RecipeError(
            "training.micro_batch_size: not even one block fits the memory of this GPU; use a "
            "smaller model or data.block_size, or training.activation_checkpointing"
        )

    @find_executable_batch_size(starting_batch_size=smaller(), reduce_batch_size_fn=smaller)
    def try_size(size: int) -> int:
        """The size, if a step of it fits."""
        probe_step(model, size, block_size=block_size, dtype=dtype, other_memory=other_memory)
        return size

    found = min(gather_object([try_size()]))
    model.zero_grad()
    if activation_checkpointing:  # the trainer turns it on itself
        model.activation_checkpointing_disable()
    return found


def probe_step(
    model: PreTrainedModel, blocks: int, *, block_size: int, dtype: torch.dtype, other_memory: int
) -> None:
    """Forward and backward on some blocks, beside the memory that the rest of a run takes."""
    device = model.device
    rest = torch.empty(other_memory, dtype=torch.uint8, device=device)
    ids = torch.zeros(blocks, block_size, dtype=torch.long, device=device)
    with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
        loss = model(input_ids=ids, labels=ids, shift_labels=ids, use_cache=False).loss
    loss.backward()
    del rest
