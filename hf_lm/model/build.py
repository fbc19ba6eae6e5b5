"""Build a new model from a config, initialise it, and compile its blocks.

Only native classes are used and no code from a model repository is run, so what is saved loads
everywhere. Precision is a matter of autocast, in training.
"""

from __future__ import annotations

import math
from contextlib import nullcontext

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    set_seed,
)

from hf_lm.model.config import FAMILIES, GPTConfig, Vocabulary
from hf_lm.model.lora import add_lora
from hf_lm.model.loss import use_linear_cross_entropy
from hf_lm.model.pretrained import load_pretrained, pretrained_config, resize_embeddings
from hf_lm.recipe import ModelRecipe

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
    resize_embeddings(model, vocabulary.size)
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
        use_linear_cross_entropy(model)
        model.set_attn_implementation(attention)
    return model


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


def scale_residual(model: PreTrainedModel) -> None:
    """Start what writes into the residual stream at 0.02/√(2·n_layer) (Radford et al., 2019).

    transformers does so for GPT-2 alone.
    """
    config = model.config
    std = config.initializer_range / math.sqrt(2 * config.num_hidden_layers)
    for name, weight in model.named_parameters():
        if name.endswith(RESIDUAL):
            nn.init.normal_(weight, mean=0.0, std=std)


def transformer_blocks(model: nn.Module) -> nn.ModuleList:
    """The transformer blocks: the longest list of modules in the network."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=len)


def compile_blocks(model: nn.Module) -> None:
    """torch.compile each block, in place: one graph serves all, so it takes seconds."""
    for block in transformer_blocks(model):
        block.compile()
