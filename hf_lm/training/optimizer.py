"""Build parameter groups and the optimizer: Muon, AdamW, Adam or SGD.

Only matrices have weight decay: biases, norms and other vectors have none.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hf_lm.recipe import TrainingRecipe
from hf_lm.training.muon import Muon


def parameter_groups(model: nn.Module, *, weight_decay: float) -> list[dict[str, Any]]:
    """Put every trained parameter into one of two groups: matrices, which decay, and the rest."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]


def muon_groups(model: nn.Module, recipe: TrainingRecipe) -> list[dict[str, Any]]:
    """Return parameter groups for Muon: one per shape of hidden matrices, and two for AdamW.

    Embeddings and the output matrix stay with AdamW: their rows are tokens, not directions.
    """
    shapes: dict[tuple[Any, ...], list[nn.Parameter]] = {}
    output = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    for name, module in model.named_modules():
        if not isinstance(module, (nn.Linear, Conv1D)) or module is output:
            continue
        weight: Any = module.weight
        transposed = isinstance(module, Conv1D)  # whose weights are [inputs, outputs]
        if weight.requires_grad:
            matrices = 3 if transposed and name.endswith(".attn.c_attn") else 1  # q, k and v
            shapes.setdefault((transposed, matrices, *weight.shape), []).append(weight)
    taken = {id(weight) for weights in shapes.values() for weight in weights}
    others = parameter_groups(model, weight_decay=recipe.weight_decay)
    for group in others:
        group["params"] = [p for p in group["params"] if id(p) not in taken]
        group |= {"lr": float(recipe.learning_rate), "betas": recipe.betas, "eps": recipe.eps}
    return others + [
        {
            "params": weights,
            "matrices": matrices,
            "transposed": transposed,
            "lr": float(recipe.matrix_learning_rate),
            "momentum": recipe.momentum,
            "weight_decay": recipe.weight_decay,
        }
        for (transposed, matrices, *_), weights in shapes.items()
    ]


def build_optimizer(
    model: nn.Module, *, recipe: TrainingRecipe, precision: str = "fp32"
) -> torch.optim.Optimizer:
    """Build the optimizer of the recipe.

    Muon (Jordan et al., 2024), AdamW (Loshchilov and Hutter, 2019), Adam (Kingma and Ba, 2015) or
    SGD with momentum.

    Args:
        model: the model to train.
        recipe: the `training` section, with a number in place of every "auto".
        precision: "fp32", "bf16" or "fp16"; with "bf16", Muon's matrix products are in bf16.
    """
    if recipe.optimizer == "muon":
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        return Muon(muon_groups(model, recipe), dtype=dtype)
    groups = parameter_groups(model, weight_decay=recipe.weight_decay)
    rate = float(recipe.learning_rate)
    if recipe.optimizer == "sgd":
        sgd = torch.optim.SGD(groups, lr=rate, momentum=recipe.momentum, fused=True)
        for weight in (weight for group in groups if recipe.momentum for weight in group["params"]):
            # torch does not write it if the first step is skipped
            sgd.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        return sgd
    kind = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=rate, betas=recipe.betas, eps=recipe.eps, fused=True)
