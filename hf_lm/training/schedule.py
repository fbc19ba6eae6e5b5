"""Learning-rate schedules with a warmup whose first step is above 0."""

from __future__ import annotations

import math

import torch
from torch.optim.lr_scheduler import LambdaLR

from hf_lm.recipe import TrainingRecipe, count_steps


def lr_multiplier(step: int, recipe: TrainingRecipe, total: int) -> float:
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


def build_lr_schedule(
    optimizer: torch.optim.Optimizer, total: int, *, recipe: TrainingRecipe
) -> LambdaLR:
    """The learning rate of each of `total` optimizer steps."""
    return LambdaLR(optimizer, lambda step: lr_multiplier(step, recipe, total))
