"""Save the finished model as transformers loads it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_lm.model.lora import expected_peft_warnings, merge_adapter


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Any,
    *,
    merge: bool = False,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Save the files that `AutoModelForCausalLM` and `AutoTokenizer` load, and nothing else.

    Args:
        model: the trained model; it has the new type and no adapters afterwards.
        tokenizer: its tokenizer.
        folder: the directory to write to.
        merge: add adapters to the weights of the model first; otherwise they are saved as they are,
            with the name of the weights they belong to.
        dtype: the type of the saved weights; adapters keep theirs.
    """
    if merge:
        merge_adapter(model)
    if not hasattr(model, "peft_config"):
        nn.Module.to(model, dtype)
    config = model.config.get_text_config()
    config.use_cache = True  # the Trainer sets it to false, which makes generate() slow
    if longest := getattr(config, "max_position_embeddings", None):
        tokenizer.model_max_length = longest
    with expected_peft_warnings():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
