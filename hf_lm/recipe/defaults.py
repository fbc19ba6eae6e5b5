"""Resolve every "auto" to a number.

They follow from the recipe's own numbers, so that a rate found on a small network holds on a large
one: AdamW's falls as 1/width (Yang et al., 2022, arXiv:2203.03466; it meets the 6e-4 of GPT-2
small), and Muon's is the same at every width, its step being scaled by each matrix's own shape.
Measured at widths of 64, 128 and 256: benchmarks/README.md.
"""

from __future__ import annotations

from hf_lm.recipe.sections.recipe import Recipe

ADAMW_RATE = 0.46  # times 1/width


MUON_RATE = 1.28  # times 1/width, of AdamW beside Muon


MATRIX_RATE = 0.02


PRETRAINED_RATE = 5e-5  # what transformers fine-tunes with


LORA_RATE = 2e-4  # of adapters, for GPT-2 (Hu et al., 2021, arXiv:2106.09685, table 11)


def resolve_auto(recipe: Recipe) -> Recipe:
    """The recipe with every "auto" of its own numbers replaced; the machine's stay."""
    training, pretrained = recipe.training, recipe.model.pretrained
    optimizer = training.optimizer
    if optimizer == "auto":
        optimizer = "adamw" if pretrained else "muon"
    rate, matrix_rate = training.learning_rate, training.matrix_learning_rate
    if rate == "auto":
        share = MUON_RATE if optimizer == "muon" else ADAMW_RATE
        loaded = LORA_RATE if recipe.model.lora else PRETRAINED_RATE
        rate = loaded if pretrained else share / recipe.model.shape.n_embd
    if matrix_rate == "auto" and optimizer == "muon":
        matrix_rate = MATRIX_RATE
    found = {"optimizer": optimizer, "learning_rate": rate, "matrix_learning_rate": matrix_rate}
    return recipe.model_copy(update={"training": training.model_copy(update=found)})
