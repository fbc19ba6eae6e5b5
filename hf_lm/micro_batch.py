"""A network on a GPU in; the largest micro-batch of which a step fits its memory out.

A step is tried, because what the libraries and the allocator take beside the tensors is not known
beforehand. On a CPU there is nothing to try: it swaps, or the kernel ends the process, and the
estimate of plan.py holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from transformers import PreTrainedModel

from hf_lm.errors import RecipeError

SPARE = 0.05  # of the memory, for what grows in a run: fragments, evaluation, another driver
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def find_micro_batch(
    model: PreTrainedModel,
    sizes: Iterable[int],
    *,
    block_size: int,
    precision: str,
    optimizer_bytes: int,
    recompute: bool,
) -> int:
    """The largest of some sizes on which every process can train; the model is left on its GPU.

    Args:
        model: with its weights.
        sizes: in descending order.
        block_size: tokens of a block.
        precision: "fp32", "bf16" or "fp16".
        optimizer_bytes: what the optimizer will keep beside the model.
        recompute: whether activations are computed again in the backward pass.

    Raises:
        RecipeError: not even the smallest one fits.
    """
    place = PartialState()
    device: Any = place.device
    model.to(device).train()
    if recompute:
        model.activation_checkpointing_enable()
    rest = optimizer_bytes
    if place.num_processes > 1:  # DDP holds all gradients once more
        rest += sum(4 * weight.numel() for weight in model.parameters())
    if device.type == "cuda":
        rest += int(SPARE * torch.cuda.mem_get_info()[0])

    step = partial(train_once, model, block_size=block_size, precision=precision, rest=rest)
    fits = min(gather_object([largest_that_fits(sizes, step)]))
    model.zero_grad()
    if recompute:  # the trainer turns it on itself
        model.activation_checkpointing_disable()
    if not fits:
        raise RecipeError(
            "training.micro_batch_size: not even one block fits the memory of this GPU; use a "
            "smaller model or data.block_size, or training.activation_checkpointing"
        )
    return fits


def largest_that_fits(sizes: Iterable[int], step: Callable[[int], None]) -> int:
    """The first size that does not run out of memory, or 0."""
    for size in sizes:
        try:
            step(size)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()  # does nothing without a GPU
            continue
        torch.cuda.empty_cache()
        return size
    return 0


def train_once(
    model: PreTrainedModel, blocks: int, *, block_size: int, precision: str, rest: int
) -> None:
    """Forward and backward on some blocks, beside the bytes that the rest of a run takes."""
    device, dtype = model.device, DTYPES.get(precision)
    held = torch.empty(rest, dtype=torch.uint8, device=device)
    ids = torch.zeros(blocks, block_size, dtype=torch.long, device=device)
    with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
        loss = model(input_ids=ids, labels=ids, shift_labels=ids, use_cache=False).loss
    loss.backward()
    del held
