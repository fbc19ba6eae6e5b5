"""The Muon optimizer for matrices, with AdamW for all other parameters.

Muon (Jordan et al., 2024, kellerjordan.github.io/posts/muon) steps by the orthogonal matrix nearest
to the momentum: every direction of a matrix moves by the same amount. It is found by polynomials of
the matrix, those of Polar Express (Amsel et al., 2025, arXiv:2505.16932), which are only products.
"""

# Shapes: n matrices of one shape, R rows, C columns.

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import distributed
from torch.optim.adamw import adamw

# The coefficients of a·x + b·x³ + c·x⁵ for each iteration. They are for singular values from 1e-3
# of the norm, and stay 1 % inside the range of convergence, as the paper does for bf16.
SAFETY = 1.01


POLYNOMIALS = [
    (a / SAFETY, b / SAFETY**3, c / SAFETY**5)
    for a, b, c in (
        (8.28721201814563, -23.595886519098837, 17.300387312530933),
        (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
        (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    )
]


def orthogonalize(matrices: torch.Tensor, *, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Approximate the nearest (semi-)orthogonal matrix of each of the matrices.

    Singular values above 1e-3 of the norm become 0.13 to 1.87. Two more iterations would make them
    1; they gave the same loss and took 1.5 times as long.

    Args:
        matrices: [n, R, C].
        dtype: the type of the matrix products.

    Returns:
        [n, R, C], in the type of the argument.
    """
    wide = matrices.shape[-2] <= matrices.shape[-1]
    x = (matrices if wide else matrices.mT).to(dtype)
    norms = x.norm(dim=(-2, -1), keepdim=True)
    x = x / (norms * SAFETY + 1e-7)
    for a, b, c in POLYNOMIALS:
        gram = x @ x.mT
        gram = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, gram, x, beta=a)
    return (x if wide else x.mT).to(matrices.dtype)


def over_ranks(
    function: Callable[[torch.Tensor], torch.Tensor], matrices: torch.Tensor
) -> torch.Tensor:
    """Compute a function of each matrix [n, R, C]; every process computes its share of them."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return function(matrices)
    world_size, rank = distributed.get_world_size(), distributed.get_rank()
    count = -(-len(matrices) // world_size)
    padding = matrices.new_zeros(count * world_size - len(matrices), *matrices.shape[1:])
    share = torch.cat([matrices, padding])[rank * count : (rank + 1) * count]
    result = function(share).contiguous()
    results = [torch.empty_like(result) for _ in range(world_size)]
    distributed.all_gather(results, result)
    return torch.cat(results)[: len(matrices)]


class Muon(torch.optim.Optimizer):
    """An optimizer that updates groups with "matrices" by Muon and the others by fused AdamW.

    The update of a matrix is scaled by √(outputs/inputs) if that is above 1, so that its effect on
    the output of the matrix, and with it the best learning rate, is the same at every width.

    Args:
        groups: parameter groups. Each has "params", "lr" and "weight_decay". A group with
            "matrices" (how many matrices one weight [R, matrices·C] holds side by side) also has
            "momentum" and "transposed" (whether weights are [inputs, outputs]), and its weights
            have one shape. Any other group has "betas" and "eps".
        dtype: the type of the matrix products.

    Attributes:
        found_inf: a step changes nothing if it is 1.0, as in torch's fused optimizers.
    """

    found_inf: torch.Tensor | None = None

    def __init__(
        self, groups: Iterable[dict[str, Any]], *, dtype: torch.dtype = torch.float32
    ) -> None:
        self.dtype = dtype
        # `fused` also tells load_state_dict to keep "step" on the device.
        super().__init__([{"fused": True, **group} for group in groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            trained = [p for p in group["params"] if p.grad is not None]
            if trained and "matrices" in group:
                self.step_muon(trained, group)
            elif trained:
                self.step_adamw(trained, group)
        return loss

    def step_muon(self, weights: list[torch.Tensor], group: dict[str, Any]) -> None:
        """Update matrices by Muon with Nesterov momentum and decoupled weight decay."""
        for weight in weights:
            if not self.state[weight]:
                self.state[weight]["momentum"] = torch.zeros_like(weight)
        momentums = [self.state[weight]["momentum"] for weight in weights]
        grads = [cast("torch.Tensor", weight.grad) for weight in weights]
        decay: Any = group["lr"] * group["weight_decay"]
        skipped = self.found_inf
        if skipped is not None:  # moving the momentum towards itself leaves it unchanged
            pairs = zip(momentums, grads, strict=True)
            grads = [torch.where(skipped > 0, *pair) for pair in pairs]
        torch._foreach_lerp_(momentums, grads, 1 - group["momentum"])
        ahead = torch.stack(torch._foreach_lerp(grads, momentums, group["momentum"]))
        stacked = ahead.unflatten(-1, (group["matrices"], -1)).transpose(1, 2).flatten(0, 1)
        steps = over_ranks(lambda share: orthogonalize(share, dtype=self.dtype), stacked)
        rows, columns = stacked.shape[-2:]
        outputs, inputs = (columns, rows) if group["transposed"] else (rows, columns)
        rate = group["lr"] * math.sqrt(max(1, outputs / inputs))
        steps = steps.unflatten(0, (len(weights), -1)).transpose(1, 2).flatten(2)
        if skipped is not None:
            steps, decay = steps * (1 - skipped), decay * (1 - skipped)
        torch._foreach_mul_(weights, 1 - decay)
        torch._foreach_add_(weights, list(steps.unbind()), alpha=-rate)

    def step_adamw(self, weights: list[torch.Tensor], group: dict[str, Any]) -> None:
        """Update other parameters by the fused AdamW of torch."""
        for weight in weights:
            if not self.state[weight]:
                self.state[weight]["step"] = torch.zeros((), device=weight.device)
                self.state[weight]["exp_avg"] = torch.zeros_like(weight)
                self.state[weight]["exp_avg_sq"] = torch.zeros_like(weight)
        states = [self.state[weight] for weight in weights]
        adamw(
            weights,
            [cast("torch.Tensor", weight.grad) for weight in weights],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
            found_inf=self.found_inf,
        )
