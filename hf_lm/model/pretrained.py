"""Load pretrained weights, resize embeddings, and save the finished model."""

from __future__ import annotations

import json
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hf_lm.errors import RecipeError, one_line
from hf_lm.model.lora import merge_adapter
from hf_lm.recipe import ModelRecipe

DROPOUTS = ("attn_pdrop", "embd_pdrop", "resid_pdrop", "attention_dropout", "hidden_dropout")


def resize_embeddings(model: PreTrainedModel, size: int) -> None:
    """Give a model rows for tokens it was not trained with, if it has none.

    They begin as draws from the distribution of the others (Hewitt, 2021,
    nlp.stanford.edu/~johnhew/vocab-expansion.html), as transformers makes them.
    """
    if size > model.config.vocab_size:
        model.resize_token_embeddings(size, mean_resizing=model.device.type != "meta")


def pretrained_config(
    recipe: ModelRecipe, name: str, known: int, *, block_size: int
) -> PreTrainedConfig:
    """The configuration that comes with pretrained weights, with the recipe's dropout.

    Args:
        recipe: with the dropout.
        name: of the model.
        known: tokens that it has to know.
        block_size: tokens that it must be able to see.
    """
    key = f"model.pretrained = {json.dumps(name)}"
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # the loader raises OSError, ValueError, KeyError and more
        raise RecipeError(f"{key}: {one_line(error)}") from None
    problems = []
    if known > config.vocab_size:
        problems.append(
            f"{key}: has {config.vocab_size:,} tokens, the tokenizer {known:,}; use the model's "
            "own tokenizer, or name in tokenizer.add_tokens what it shall learn"
        )
    longest = getattr(config, "max_position_embeddings", None)
    if longest and block_size > longest:
        problems.append(f"data.block_size = {block_size}: {key} sees {longest} tokens; lower it")
    if problems:
        raise RecipeError(problems)
    for name in DROPOUTS:
        if hasattr(config, name):
            setattr(config, name, recipe.dropout)
    return config


def load_pretrained(name: str, config: PreTrainedConfig | None = None) -> Any:
    """Weights from a folder or the Hub: safetensors only, in fp32, and none of its code."""
    try:
        return AutoModelForCausalLM.from_pretrained(
            name,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
        )
    except Exception as error:  # as above, and whatever a damaged file makes safetensors raise
        raise RecipeError(f"model.pretrained = {json.dumps(name)}: {one_line(error)}") from None


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Any,
    *,
    base: str | None = None,
) -> None:
    """Everything `AutoModelForCausalLM` and `AutoTokenizer` need, and nothing else.

    Of adapters that is themselves and the name of what they are for, or with `base`, the weights
    they were trained on, the whole model.
    """
    if base:
        model = merge_adapter(model, load_pretrained(base))
    model.config.use_cache = True  # the Trainer turns it off; left so, generate() would crawl
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
