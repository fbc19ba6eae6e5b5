"""Load pretrained weights, and say what a run changes of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from hf_lm.errors import RecipeError, one_line
from hf_lm.model.lora import adapter_base, expected_peft_warnings
from hf_lm.recipe import ModelRecipe


def resize_embeddings(model: PreTrainedModel, size: int) -> None:
    """Add embedding rows for tokens that a model was not trained with.

    transformers draws them from the distribution of the other rows (Hewitt, 2021,
    nlp.stanford.edu/~johnhew/vocab-expansion.html).
    """
    if size > model.config.get_text_config().vocab_size:
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
    config, key = load_config(name), f"model.pretrained = {json.dumps(name)}"
    text, problems = config.get_text_config(), []
    if known > text.vocab_size:
        problems.append(
            f"{key}: has {text.vocab_size:,} tokens, the tokenizer {known:,}; use the model's "
            "own tokenizer, or list new tokens in tokenizer.add_tokens"
        )
    longest = getattr(text, "max_position_embeddings", None)
    if longest and block_size > longest:
        problems.append(f"data.block_size = {block_size}: {key} sees {longest} tokens; lower it")
    if problems:
        raise RecipeError(problems)
    for field in dropout_fields(text):
        setattr(text, field, recipe.dropout)
    return config


def load_config(name: str) -> PreTrainedConfig:
    """Load the configuration of pretrained weights from a directory or the Hub.

    Raises:
        RecipeError: there is none.
    """
    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # the loader raises OSError, ValueError, KeyError and more
        rule = one_line(error)
        if base := adapter_base(name):
            rule = (
                f"holds adapters, not a model; their base is {base}: fine-tune that, or make one "
                "model of both with model.lora.merge"
            )
        raise RecipeError(f"model.pretrained = {json.dumps(name)}: {rule}") from None


def dropout_fields(config: PreTrainedConfig) -> dict[str, float]:
    """Return the dropout fields of a configuration with their values, whatever they are called.

    Fields of classification heads and of layers that are left out as a whole are not among them.
    """
    return {
        name: value
        for name, value in config.to_dict().items()
        if re.search("dropout|pdrop", name)
        and not re.search("classifier|summary|layerdrop", name)
        and isinstance(value, (int, float))
        and not isinstance(value, bool)
    }


def pretrained_notes(recipe: ModelRecipe) -> list[str]:
    """Say what of published weights is changed for a run.

    Args:
        recipe: the `model` section.
    """
    if recipe.pretrained is None:
        return []
    config = load_config(recipe.pretrained)
    fields = dropout_fields(config.get_text_config())
    changed = [f"{n} = {v:g}" for n, v in fields.items() if v != recipe.dropout]
    notes = []
    if changed:
        notes.append(
            f"{', '.join(changed)} of {recipe.pretrained} is {recipe.dropout:g} in this run "
            "(model.dropout)"
        )
    if recipe.lora is None or recipe.lora.merge:
        dtype = saved_dtype(recipe, config)
        if dtype != torch.float32:
            name = str(dtype).removeprefix("torch.")
            notes.append(f"the model is saved in {name}, as its base is (model.save_dtype)")
    return notes


def saved_dtype(recipe: ModelRecipe, config: PreTrainedConfig | None = None) -> torch.dtype:
    """Return the type of the weights of the saved model.

    Args:
        recipe: the `model` section.
        config: the configuration of the pretrained weights; None loads it.
    """
    if recipe.save_dtype != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[
            recipe.save_dtype
        ]
    if recipe.pretrained is None:
        return torch.float32
    config = config or load_config(recipe.pretrained)
    dtype: Any = config.get_text_config().dtype
    return dtype or torch.float32


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
        rule = one_line(error)
        if (Path(name) / "pytorch_model.bin").is_file():
            rule = (
                "holds pytorch_model.bin alone, a pickle, which may run code when it is loaded; if "
                f"you trust it, convert it: AutoModelForCausalLM.from_pretrained({name!r})"
                '.save_pretrained("FOLDER")'
            )
        raise RecipeError(f"model.pretrained = {json.dumps(name)}: {rule}") from None
