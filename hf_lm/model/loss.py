"""Compute the cross-entropy of hidden states without materialising the logits.

The logits are computed a few megabytes at a time, and the gradient right after the loss of each
part: nothing is computed twice, and only one part is in memory (the method of Liger Kernel, Hsu et
al., 2024, arXiv:2410.10989, in plain torch). Softmax and sums are always in fp32.
"""

# Shapes: N targets of a batch, E width, V vocabulary, C rows at a time.

from __future__ import annotations

from functools import wraps
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

IGNORE_INDEX = -100  # the target that transformers ignores in a loss

LOGIT_BYTES = {"cpu": 16 * 2**20, "cuda": 256 * 2**20}  # of fp32 logits at a time


class LinearCrossEntropy(torch.autograd.Function):
    """Cross-entropy divided by a count; the forward pass computes the gradient as well."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NE: torch.Tensor,
        weight_VE: torch.Tensor,
        targets_N: torch.Tensor,
        count: torch.Tensor,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        """Compute loss and gradient in one pass; `dtype` is the type of the matrix products."""
        device = hidden_NE.device.type
        rows = max(1, LOGIT_BYTES[device] // (4 * len(weight_VE)))
        weight = weight_VE.to(dtype)
        total = torch.zeros((), device=hidden_NE.device)
        needs_hidden_grad, needs_weight_grad = ctx.needs_input_grad[:2]
        hidden_grad = torch.empty_like(hidden_NE) if needs_hidden_grad else None
        weight_grad = torch.zeros_like(weight_VE) if needs_weight_grad else None
        with torch.autocast(device, enabled=False):
            for start in range(0, len(targets_N), rows):
                part = slice(start, start + rows)
                hidden_CE, targets_C = hidden_NE[part].to(dtype), targets_N[part, None]
                is_target_C = targets_C != IGNORE_INDEX
                indices_C = targets_C.clamp(min=0)
                log_probs_CV = functional.log_softmax((hidden_CE @ weight.T).float(), dim=-1)
                total -= (log_probs_CV.gather(1, indices_C) * is_target_C).sum()
                if not (needs_hidden_grad or needs_weight_grad):
                    continue
                grad_CV = log_probs_CV.exp_()  # of the logits: softmax minus 1 at the target
                grad_CV.scatter_add_(1, indices_C, -torch.ones_like(grad_CV[:, :1]))
                grad_CV = grad_CV.to(dtype)
                if hidden_grad is not None:
                    hidden_grad[part] = (grad_CV @ weight) * is_target_C
                if weight_grad is not None:
                    weight_grad += grad_CV.T @ (hidden_CE * is_target_C)
        ctx.save_for_backward(hidden_grad, weight_grad, count)
        return total / count

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Scale the gradients that the forward pass computed."""
        *saved, count = ctx.saved_tensors
        scale = grads[0] / count
        return *(None if grad is None else grad * scale for grad in saved), None, None, None


def mean_loss(
    hidden: torch.Tensor,
    weight_VE: torch.Tensor,
    targets: torch.Tensor,
    count: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """Compute the cross-entropy of hidden states and targets, in nats, divided by a count.

    Args:
        hidden: [..., E].
        weight_VE: the output matrix.
        targets: ids [...]; IGNORE_INDEX is not counted.
        count: the divisor; None is the number of targets that are not ignored.
    """
    if count is None:
        count = (targets != IGNORE_INDEX).sum()
    if not torch.is_grad_enabled():  # inside an autograd function this is always false
        hidden, weight_VE = hidden.detach(), weight_VE.detach()
    kind = hidden.device.type
    autocast = torch.is_autocast_enabled(kind)
    return LinearCrossEntropy.apply(
        hidden.flatten(0, -2),
        weight_VE,
        targets.flatten(),
        torch.as_tensor(count, device=hidden.device),
        torch.get_autocast_dtype(kind) if autocast else hidden.dtype,
    )


def use_linear_cross_entropy(model: PreTrainedModel) -> None:
    """Make a model compute its loss without logits when it is called with `shift_labels`.

    The Trainer calls it so; every other call, the class and the weights stay the same. The logits
    of the model have to be a plain product: nothing changes if an adapter is on the output matrix.
    The loss stays inside `forward`, as DDP needs it.
    """
    if type(model.get_output_embeddings()) is not nn.Linear:
        return
    stock = type(model).forward

    @wraps(stock)  # generate() and the Trainer read the signature
    def forward(
        self: Any, *args: Any, shift_labels: torch.Tensor | None = None, **kwargs: Any
    ) -> Any:
        """Return only the loss if `shift_labels` are given; otherwise call the stock forward."""
        if shift_labels is None:
            return stock(self, *args, **kwargs)
        kwargs.pop("labels", None)  # unshifted labels, for the stock loss
        count = kwargs.pop("num_items_in_batch", None)
        hidden = self.base_model(*args, **kwargs).last_hidden_state
        weight = self.get_output_embeddings().weight
        return CausalLMOutput(loss=mean_loss(hidden, weight, shift_labels, count))

    model.forward = MethodType(forward, model)


def has_linear_loss(model: PreTrainedModel) -> bool:
    """Return whether `use_linear_cross_entropy` has changed a model."""
    return "forward" in vars(model)
