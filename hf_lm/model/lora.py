"""Train LoRA adapters instead of the pretrained weights, through peft.

LoRA (Hu et al., 2021, arXiv:2106.09685) as peft implements it and transformers integrates it: the
model keeps its class, its own weights are frozen, and only the adapters are saved, a few megabytes.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hf_lm.recipe import LoraRecipe
from hf_lm.upstream import PEFT_WARNINGS


@contextmanager
def expected_peft_warnings() -> Iterator[None]:
    """Ignore warnings of peft that need nothing from the user."""
    with warnings.catch_warnings():
        for message in PEFT_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        yield


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
    # Weights of Conv1D are [inputs, outputs].
    config.fan_in_fan_out = any(isinstance(module, Conv1D) for module in model.modules())
    with expected_peft_warnings():
        model.add_adapter(config)
    added: Any = model.peft_config["default"]
    added.target_modules = sorted(added.target_modules)  # a set would be saved in random order


def merge_adapter(model: PreTrainedModel) -> None:
    """Add the adapter of a model to its weights, and remove it, in place.

    A matrix that an adapted layer shares with another one, as tied embeddings do, becomes two:
    the other layer was trained without the adapter.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    names = [name for name, layer in model.named_modules() if isinstance(layer, BaseTunerLayer)]
    weights = [getattr(layer, "weight", None) for layer in model.modules()]
    for name in names:
        adapted: Any = model.get_submodule(name)
        layer = adapted.get_base_layer()
        if sum(weight is layer.weight for weight in weights) > 2:  # the layer and its wrapper
            layer.weight = nn.Parameter(layer.weight.detach().clone())
            model.config.tie_word_embeddings = False
        adapted.merge()
        model.set_submodule(name, layer)
    del model.peft_config
    model._hf_peft_config_loaded = False


def adapter_base(name: str) -> str | None:
    """Return the model that an adapter belongs to; None if a folder or Hub id is no adapter."""
    from transformers.utils import find_adapter_config_file

    try:
        path = find_adapter_config_file(name)
    except Exception:  # the Hub cannot be reached, or has no such model
        return None
    text = Path(path).read_text(encoding="utf-8") if path else "{}"
    return json.loads(text).get("base_model_name_or_path")
