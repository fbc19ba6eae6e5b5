"""Resolve every "auto" to a number.

Learning rates follow from the width of the model, so that a rate found on a small model holds for a
large one. AdamW's falls as 1/width (Yang et al., 2022, arXiv:2203.03466; it gives the usual 6e-4
for GPT-2 small). Muon's is the same at every width because its update is scaled by the shape of
each matrix. benchmarks/README.md has the measurements at widths of 64, 128 and 256.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_lm.recipe.sections.recipe import Recipe

ADAMW_RATE = 0.46  # times 1/width
MUON_RATE = 1.28  # times 1/width: AdamW's rate for the parameters that Muon does not train
MATRIX_RATE = 0.02  # Muon
PRETRAINED_RATE = 5e-5  # the default of transformers' TrainingArguments
LORA_RATE = 2e-4  # for GPT-2 (Hu et al., 2021, arXiv:2106.09685, table 11)

# What runs did before a key of `data` was there, if that is not its default.
EARLIER_DATA = {"fresh_blocks": False}


def with_earlier_values(written: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recipe.json of a run with the values of keys that its version did not have.

    Args:
        written: the recipe, with every key of the version that wrote it.
    """
    data = written.get("data")
    return {**written, "data": {**EARLIER_DATA, **data}} if isinstance(data, dict) else {**written}


def resolve_auto(recipe: Recipe) -> Recipe:
    """Replace every "auto" that follows from the recipe; those of the machine stay."""
    training, pretrained = recipe.training, recipe.model.pretrained
    optimizer = training.optimizer
    if optimizer == "auto":
        optimizer = "adamw" if pretrained else "muon"
    rate, matrix_rate = training.learning_rate, training.matrix_learning_rate
    if rate == "auto":
        if pretrained:
            rate = LORA_RATE if recipe.model.lora else PRETRAINED_RATE
        else:
            factor = MUON_RATE if optimizer == "muon" else ADAMW_RATE
            rate = factor / recipe.model.shape.n_embd
    if matrix_rate == "auto" and optimizer == "muon":
        matrix_rate = MATRIX_RATE
    resolved = {"optimizer": optimizer, "learning_rate": rate, "matrix_learning_rate": matrix_rate}
    return recipe.model_copy(update={"training": training.model_copy(update=resolved)})
