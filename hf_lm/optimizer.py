"""A recipe section and a model in, an optimizer and its schedule out.

Matrices decay and nothing else does: not biases, norms or other vectors. The schedules reach a
floor of `min_lr_ratio`, and the first step already has a rate above 0.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from hf_lm.recipe import TrainingRecipe


def parameter_groups(model: nn.Module, *, weight_decay: float) -> list[dict[str, object]]:
    """Two groups that hold every trained parameter once: matrices, which decay, and the rest."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]


def build_optimizer(model: nn.Module, *, recipe: TrainingRecipe) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter, 2019), Adam (Kingma and Ba, 2015) or SGD with momentum."""
    groups = parameter_groups(model, weight_decay=recipe.weight_decay)
    rate = recipe.learning_rate
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=recipe.momentum, fused=True)
    kind = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=rate, betas=recipe.betas, eps=recipe.eps, fused=True)


def count_steps(steps: float, total: int) -> int:
    """A number of steps that may be given as a share of all steps."""
    return int(steps) if steps >= 1 or steps == 0 else max(1, round(steps * total))


def rate_factor(step: int, recipe: TrainingRecipe, total: int) -> float:
    """The share of the peak rate in use at a step, counted from 0.

    Warmup rises as 1/n, 2/n … 1: it does not waste step one at rate 0. What follows decays over the
    steps left ("wsd": over the last `decay_steps` of them) to `min_lr_ratio`, which the step after
    the last one would reach.
    """
    warmup = count_steps(recipe.warmup_steps, total)
    if step < warmup:
        return (step + 1) / warmup
    if recipe.schedule == "constant":
        return 1.0
    start = warmup
    if recipe.schedule == "wsd":  # warmup-stable-decay (Hu et al., 2024, arXiv:2404.06395)
        start = max(warmup, total - count_steps(recipe.decay_steps, total))
    done = min(1.0, max(0, step - start) / max(1, total - start))
    left = (1 + math.cos(math.pi * done)) / 2 if recipe.schedule == "cosine" else 1 - done
    return recipe.min_lr_ratio + (1 - recipe.min_lr_ratio) * left


def build_schedule(
    optimizer: torch.optim.Optimizer, total: int, *, recipe: TrainingRecipe
) -> LambdaLR:
    """The learning rate of each of `total` optimizer steps."""
    return LambdaLR(optimizer, lambda step: rate_factor(step, recipe, total))
