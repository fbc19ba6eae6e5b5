"""A recipe section and a vocabulary in, a stock transformers model out, built or loaded in fp32.

Only native classes are used and no code from a model repository is run, so what is saved loads
everywhere. Precision is a matter of autocast, in training.
"""

from __future__ import annotations

import json
import math
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from hf_lm.errors import RecipeError
from hf_lm.lora import add_lora, merged
from hf_lm.loss import use_mean_loss
from hf_lm.model_config import FAMILIES, GPTConfig, Vocabulary
from hf_lm.recipe import ModelRecipe

DROPOUTS = ("attn_pdrop", "embd_pdrop", "resid_pdrop", "attention_dropout", "hidden_dropout")
RESIDUAL = ("o_proj.weight", "down_proj.weight")  # what writes into the residual stream


def build_model(
    recipe: ModelRecipe,
    vocabulary: Vocabulary,
    *,
    block_size: int,
    attention: str = "sdpa",
    seed: int = 0,
    meta: bool = False,
    added: int = 0,
) -> PreTrainedModel:
    """The network of a recipe, from scratch or pretrained.

    Args:
        recipe: which network.
        vocabulary: of the tokenizer the model will be used with.
        block_size: tokens the model must be able to see.
        attention: the name of its kernel.
        seed: of the initial weights.
        meta: without memory for the weights, to count them.
        added: tokens that the tokenizer may have more than pretrained weights.

    Raises:
        RecipeError: the weights cannot be loaded, or do not fit the tokenizer or the blocks.
    """
    config = native_config(recipe, vocabulary, block_size=block_size, added=added)
    set_seed(seed)
    if recipe.pretrained and not meta:
        model = load_pretrained(recipe.pretrained, config)
    else:
        with torch.device("meta") if meta else nullcontext():
            model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
            scale_residual(model)
    grow_embeddings(model, vocabulary.size)
    model.config.architectures = [type(model).__name__]
    _, bos, eos, pad = vocabulary
    model.config.bos_token_id, model.config.eos_token_id = bos, eos
    model.generation_config = GenerationConfig(
        bos_token_id=bos, eos_token_id=eos, pad_token_id=eos if pad is None else pad
    )
    # transformers takes the loss from the class name, and GPT2LMHeadModel has no "ForCausalLM" in
    # it: the Trainer then counts one target a block too many, and the loss is (T-1)/T of itself.
    model.loss_type = "ForCausalLM"
    if recipe.lora:
        set_seed(seed)
        add_lora(model, recipe.lora)
    if config.model_type in FAMILIES:
        use_mean_loss(model)
        model.set_attn_implementation(attention)
    return model


def grow_embeddings(model: PreTrainedModel, size: int) -> None:
    """Give a model rows for tokens it was not trained with, if it has none.

    They begin as draws from the distribution of the others (Hewitt, 2021,
    nlp.stanford.edu/~johnhew/vocab-expansion.html), as transformers makes them.
    """
    if size > model.config.vocab_size:
        model.resize_token_embeddings(size, mean_resizing=model.device.type != "meta")


def native_config(
    recipe: ModelRecipe, vocabulary: Vocabulary, *, block_size: int, added: int = 0
) -> PreTrainedConfig:
    """The configuration of the recipe's network, checked against its vocabulary and blocks."""
    if recipe.pretrained:
        name, known = recipe.pretrained, vocabulary.size - added
        return pretrained_config(recipe, name, known, block_size=block_size)
    layers, heads, width = recipe.shape
    return GPTConfig(
        family=recipe.family,
        vocab_size=vocabulary.size,
        n_positions=recipe.n_positions or block_size,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        n_inner=recipe.n_inner,
        dropout=recipe.dropout,
        pad_vocab_to_multiple_of=recipe.pad_vocab_to_multiple_of,
        tie_word_embeddings=recipe.tie_word_embeddings,
        bos_token_id=vocabulary.bos_token_id,
        eos_token_id=vocabulary.eos_token_id,
    ).to_native()


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


def one_line(error: Exception) -> str:
    """An exception's text on one line, not longer than a person reads."""
    return " ".join(str(error).split())[:300]


def scale_residual(model: PreTrainedModel) -> None:
    """Start what writes into the residual stream at 0.02/√(2·n_layer) (Radford et al., 2019).

    transformers does so for GPT-2 alone.
    """
    config = model.config
    std = config.initializer_range / math.sqrt(2 * config.num_hidden_layers)
    for name, weight in model.named_parameters():
        if name.endswith(RESIDUAL):
            nn.init.normal_(weight, mean=0.0, std=std)


def blocks_of(model: nn.Module) -> nn.ModuleList:
    """The transformer blocks: the longest list of modules in the network."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=len)


def compile_blocks(model: nn.Module) -> None:
    """torch.compile each block, in place: one graph serves all, so it takes seconds."""
    for block in blocks_of(model):
        block.compile()


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
        model = merged(model, load_pretrained(base))
    model.config.use_cache = True  # the Trainer turns it off; left so, generate() would crawl
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
