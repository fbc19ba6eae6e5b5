"""Learning-rate schedules whose first step has a learning rate above 0."""

from __future__ import annotations

import math

import torch
from torch.optim.lr_scheduler import LambdaLR

from hf_lm.recipe import TrainingRecipe, count_steps

JUMP = 1.2  # times the learning rate; less is not felt in the loss


def lr_multiplier(step: int, recipe: TrainingRecipe, total: int) -> float:
    """Return the learning rate at a step as a fraction of the peak.

    The warmup rises as 1/n, 2/n … 1: step one is not wasted at learning rate 0. The decay covers
    the steps left ("wsd": the last `decay_steps`) and would reach `min_lr_ratio` one step after the
    last one.

    Args:
        step: counted from 0.
        recipe: the `training` section.
        total: optimizer steps of the run.
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


def rate_note(recipe: TrainingRecipe, *, step: int, before: int, total: int) -> str | None:
    """Say how the learning rate changes where a run continues with more steps; None if it does not.

    Args:
        recipe: the `training` section.
        step: the steps done.
        before: optimizer steps of the run when the checkpoint was written.
        total: optimizer steps now.
    """
    old = lr_multiplier(min(step, before - 1), recipe, before)
    new = lr_multiplier(step, recipe, total)
    if new <= JUMP * old:
        return None
    peak = float(recipe.learning_rate)  # "auto" is a number by now
    rates = " to ".join(f"{peak * rate:.2g}" for rate in (old, new))
    remedy = ""
    if recipe.schedule != "constant":
        remedy = '; training.schedule = "wsd" keeps the rate for more steps'
    return f"more steps: the learning rate goes from {rates} at step {step:,}{remedy}"


def build_lr_schedule(
    optimizer: torch.optim.Optimizer, total: int, *, recipe: TrainingRecipe
) -> LambdaLR:
    """Build the learning-rate schedule of `total` optimizer steps."""
    return LambdaLR(optimizer, lambda step: lr_multiplier(step, recipe, total))
