"""Train LoRA adapters instead of the pretrained weights, through peft.

LoRA (Hu et al., 2021, arXiv:2106.09685) as peft implements it and transformers integrates it: the
model keeps its class, its own weights are frozen, and only the adapters are saved, a few megabytes.
"""

from __future__ import annotations

import tempfile
import warnings
from typing import Any

from transformers import PreTrainedModel

from hf_lm.recipe import LoraRecipe


def add_lora(model: PreTrainedModel, recipe: LoraRecipe) -> None:
    """Add an adapter to linear layers (and GPT-2's Conv1D), and freeze all other weights."""
    from peft import LoraConfig

    modules = recipe.target_modules
    config = LoraConfig(
        r=recipe.r,
        lora_alpha=recipe.alpha,
        lora_dropout=recipe.dropout,
        target_modules="all-linear" if modules == "auto" else [*modules],
        task_type="CAUSAL_LM",
    )
    config.fan_in_fan_out = model.config.model_type == "gpt2"  # its weights are [inputs, outputs]
    model.add_adapter(config)
    added: Any = model.peft_config["default"]
    added.target_modules = sorted(added.target_modules)  # a set would be saved in random order


def merge_adapter(model: PreTrainedModel, pretrained: PreTrainedModel) -> PreTrainedModel:
    """Add the adapter of one model to the weights of a pretrained one, and return that.

    Args:
        model: with the trained adapter.
        pretrained: the weights that the adapter was trained on.
    """
    from peft import PeftModel

    with tempfile.TemporaryDirectory() as adapter, warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft uses a deprecated transformers name
        model.save_pretrained(adapter)
        return PeftModel.from_pretrained(pretrained, adapter).merge_and_unload()
