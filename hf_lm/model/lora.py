"""Train LoRA adapters instead of the pretrained weights, through peft.

LoRA (Hu et al., 2021, arXiv:2106.09685), as peft ships it and transformers takes it in: the class
of the network stays, its own weights are frozen, and what is saved is a few megabytes.
"""

from __future__ import annotations

import tempfile
import warnings
from typing import Any

from transformers import PreTrainedModel

from hf_lm.recipe import LoraRecipe


def add_lora(model: PreTrainedModel, recipe: LoraRecipe) -> None:
    """Put an adapter on linear layers, transposed ones of GPT-2 included, and freeze the rest."""
    from peft import LoraConfig

    modules = recipe.target_modules
    config = LoraConfig(
        r=recipe.r,
        lora_alpha=recipe.alpha,
        lora_dropout=recipe.dropout,
        target_modules="all-linear" if modules == "auto" else [*modules],
        task_type="CAUSAL_LM",
    )
    config.fan_in_fan_out = model.config.model_type == "gpt2"  # whose weights are [inputs, outputs]
    model.add_adapter(config)
    found: Any = model.peft_config["default"]
    found.target_modules = sorted(found.target_modules)  # a set, in whose order it would be saved


def merge_adapter(model: PreTrainedModel, pretrained: PreTrainedModel) -> PreTrainedModel:
    """The pretrained network with the adapter of another one added to its weights."""
    from peft import PeftModel

    with tempfile.TemporaryDirectory() as adapter, warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by an old name
        model.save_pretrained(adapter)
        return PeftModel.from_pretrained(pretrained, adapter).merge_and_unload()
