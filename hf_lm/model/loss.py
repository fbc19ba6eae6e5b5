"""Compute the cross-entropy of hidden states without materialising the logits.

A few megabytes of logits at a time become their loss and, at once, their gradient: nothing is
computed a second time and no more than that is ever held (the method of Liger Kernel, Hsu et al.,
2024, arXiv:2410.10989, in plain torch). Softmax and sums are in fp32 whatever the logits are in.
"""

# Shapes: N targets of a batch, E width, V vocabulary, C rows at a time.

from __future__ import annotations

from functools import wraps
from types import MethodType
from typing import Any

import torch
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

IGNORE_INDEX = -100  # the target that transformers leaves out of a loss


LOGIT_BYTES = {"cpu": 16 * 2**20, "cuda": 256 * 2**20}  # of fp32 logits at a time


class LinearCrossEntropy(torch.autograd.Function):
    """The sum of losses over a count, whose gradient is made in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NE: torch.Tensor,
        weight_VE: torch.Tensor,
        targets_N: torch.Tensor,
        count: torch.Tensor,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        """Go through the rows once; `dtype` is that of the matrix products."""
        device = hidden_NE.device.type
        rows = max(1, LOGIT_BYTES[device] // (4 * len(weight_VE)))
        weight = weight_VE.to(dtype)
        total = torch.zeros((), device=hidden_NE.device)
        of_hidden, of_weight = ctx.needs_input_grad[:2]
        hidden_grad = torch.empty_like(hidden_NE) if of_hidden else None
        weight_grad = torch.zeros_like(weight_VE) if of_weight else None
        with torch.autocast(device, enabled=False):
            for start in range(0, len(targets_N), rows):
                part = slice(start, start + rows)
                hidden_CE, targets_C = hidden_NE[part].to(dtype), targets_N[part, None]
                kept_C = targets_C != IGNORE_INDEX
                places_C = targets_C.clamp(min=0)
                logs_CV = functional.log_softmax((hidden_CE @ weight.T).float(), dim=-1)
                total -= (logs_CV.gather(1, places_C) * kept_C).sum()
                if not (of_hidden or of_weight):
                    continue
                grad_CV = logs_CV.exp_()  # of the logits: softmax, less 1 at the target
                grad_CV.scatter_add_(1, places_C, -torch.ones_like(grad_CV[:, :1]))
                grad_CV = grad_CV.to(dtype)
                if hidden_grad is not None:
                    hidden_grad[part] = (grad_CV @ weight) * kept_C
                if weight_grad is not None:
                    weight_grad += grad_CV.T @ (hidden_CE * kept_C)
        ctx.save_for_backward(hidden_grad, weight_grad, count)
        return total / count

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Scale what the forward pass has made."""
        *made, count = ctx.saved_tensors
        scale = grads[0] / count
        return *(None if grad is None else grad * scale for grad in made), None, None, None


def mean_loss(
    hidden: torch.Tensor,
    weight_VE: torch.Tensor,
    targets: torch.Tensor,
    count: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """The cross-entropy of hidden states against targets, in nats, over a count.

    Args:
        hidden: [..., E].
        weight_VE: the output matrix.
        targets: ids [...]; IGNORED ones count nothing.
        count: to divide the sum by; the targets that are not ignored unless given.
    """
    if count is None:
        count = (targets != IGNORE_INDEX).sum()
    if not torch.is_grad_enabled():  # which the function itself is not told
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
    """Let a model whose logits are a plain product give its loss without them.

    It does so when it is called with `shift_labels`, as the Trainer does; its class, its weights
    and every other call stay as they are. The loss stays inside `forward`, where DDP looks for it.
    """
    stock = type(model).forward

    @wraps(stock)  # generate() and the Trainer read the signature
    def forward(
        self: Any, *args: Any, shift_labels: torch.Tensor | None = None, **kwargs: Any
    ) -> Any:
        """The stock forward, or the loss alone where `shift_labels` say what to predict."""
        if shift_labels is None:
            return stock(self, *args, **kwargs)
        kwargs.pop("labels", None)  # unshifted, for the stock loss
        count = kwargs.pop("num_items_in_batch", None)
        hidden = self.base_model(*args, **kwargs).last_hidden_state
        weight = self.get_output_embeddings().weight
        return CausalLMOutput(loss=mean_loss(hidden, weight, shift_labels, count))

    model.forward = MethodType(forward, model)
