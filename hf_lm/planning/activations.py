"""Measure the memory of activations with a forward pass that computes nothing.

torch's fake tensors have shapes, types and devices, and no memory. What a forward pass saves for
the backward pass is therefore known for every family, kernel and precision, within a second.
"""

from __future__ import annotations

import logging
from typing import NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from transformers import PreTrainedModel

from hf_lm.model.loss import LOGIT_BYTES, has_linear_loss

# A family that fake tensors cannot follow (experts) is taken to save so many fp32 numbers per
# token, layer and unit of width; GPT-2 saves 19.
USUAL = 40


class Activations(NamedTuple):
    """Bytes that a forward and backward pass need beside parameters and gradients.

    Attributes:
        fixed: for any number of blocks, such as the gradient of the output matrix.
        per_block: for each block of a micro-batch.
    """

    fixed: int
    per_block: int

    def of(self, blocks: int) -> int:
        """Return the bytes of a micro-batch of some blocks."""
        return self.fixed + blocks * self.per_block


def measure_activations(
    model: PreTrainedModel,
    block_size: int,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    activation_checkpointing: bool = False,
) -> Activations:
    """Measure what a forward pass saves, and add what the loss needs while it is computed.

    Args:
        model: on the meta device; it becomes fake and must not be used again.
        block_size: tokens of a block.
        device: "cpu" or "cuda", where the model will be trained.
        dtype: the type of matrix products.
        activation_checkpointing: whether each transformer block keeps its input only, and is
            computed again in the backward pass, one after the other.
    """
    config = model.config.get_text_config()
    inputs = 4 * block_size * config.hidden_size * config.num_hidden_layers
    log = logging.getLogger("torch._subclasses.fake_tensor")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            model = model.to_empty(device=device).train()
            one, two = (saved_bytes(model, n, block_size, dtype) for n in (1, 2))
        fixed, per_block = 2 * one - two, two - one
    except Exception:  # whatever a family does that fake tensors cannot
        fixed, per_block = 0, USUAL * inputs
    finally:
        log.setLevel(level)
    if activation_checkpointing:
        per_block = inputs + per_block // config.num_hidden_layers
    if has_linear_loss(model):
        return Activations(fixed + 3 * LOGIT_BYTES[device], per_block)
    return Activations(fixed, per_block + 2 * 4 * block_size * config.vocab_size)


def saved_bytes(model: PreTrainedModel, blocks: int, block_size: int, dtype: torch.dtype) -> int:
    """Return the bytes that a forward pass saves, beside parameters and buffers."""
    device = model.device
    tensors = (*model.parameters(), *model.buffers())
    own = {StorageWeakRef(tensor.untyped_storage()) for tensor in tensors}
    saved: dict[StorageWeakRef, torch.UntypedStorage] = {}

    def save(tensor: torch.Tensor) -> torch.Tensor:
        """Note the storage of a tensor that autograd saves; views share it."""
        storage = tensor.untyped_storage()
        if StorageWeakRef(storage) not in own:
            saved[StorageWeakRef(storage)] = storage
        return tensor

    ids = torch.zeros(blocks, block_size, dtype=torch.long, device=device)
    with (
        torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor),
        torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32),
    ):
        model(input_ids=ids, labels=ids, shift_labels=ids, use_cache=False)
    return sum(storage.nbytes() for storage in saved.values())
