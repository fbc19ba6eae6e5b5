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
from hf_lm.model.lora import adapter_base, expected_peft_warnings, merge_adapter
from hf_lm.recipe import ModelRecipe

DROPOUTS = ("attn_pdrop", "embd_pdrop", "resid_pdrop", "attention_dropout", "hidden_dropout")


def resize_embeddings(model: PreTrainedModel, size: int) -> None:
    """Add embedding rows for tokens that a model was not trained with.

    transformers draws them from the distribution of the other rows (Hewitt, 2021,
    nlp.stanford.edu/~johnhew/vocab-expansion.html).
    """
    if size > model.config.vocab_size:
        model.resize_token_embeddings(size, mean_resizing=model.device.type != "meta")


def pretrained_config(
    recipe: ModelRecipe, name: str, known: int, *, block_size: int
) -> PreTrainedConfig:
    """Load the configuration of pretrained weights and set the recipe's dropout.

    Args:
        recipe: the `model` section.
        name: a directory or a Hub id.
        known: the number of tokens that the weights have to know.
        block_size: tokens that the model has to see at once.

    Raises:
        RecipeError: there is no such model, or it has too few tokens or positions.
    """
    key = f"model.pretrained = {json.dumps(name)}"
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # the loader raises OSError, ValueError, KeyError and more
        rule = one_line(error)
        if base := adapter_base(name):
            rule = (
                f"holds adapters, not a model; their base is {base}: fine-tune that, or make one "
                "model of both with model.lora.merge"
            )
        raise RecipeError(f"{key}: {rule}") from None
    problems = []
    if known > config.vocab_size:
        problems.append(
            f"{key}: has {config.vocab_size:,} tokens, the tokenizer {known:,}; use the model's "
            "own tokenizer, or list new tokens in tokenizer.add_tokens"
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
    """Load a model in fp32 from a directory or the Hub: safetensors only, without its code.

    Raises:
        RecipeError: there is no such model, or a file is damaged.
    """
    try:
        with expected_peft_warnings():
            return AutoModelForCausalLM.from_pretrained(
                name,
                config=config,
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
            )
    except Exception as error:  # as above, and the errors of safetensors for a damaged file
        raise RecipeError(f"model.pretrained = {json.dumps(name)}: {one_line(error)}") from None


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Any,
    *,
    merge: bool = False,
) -> None:
    """Save the files that `AutoModelForCausalLM` and `AutoTokenizer` load, and nothing else.

    Args:
        model: the trained model.
        tokenizer: its tokenizer.
        folder: the directory to write to.
        merge: add adapters to the weights of the model first; otherwise they are saved as they are,
            with the name of the weights they belong to.
    """
    if merge:
        merge_adapter(model)
    model.config.use_cache = True  # the Trainer sets it to false, which makes generate() slow
    tokenizer.model_max_length = model.config.max_position_embeddings
    with expected_peft_warnings():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
