"""Build a new model from a config, initialise it, and compile its blocks.

Models are stock transformers classes, so a saved model loads without hf_lm, and no code from a
model repository is run. Weights are in fp32; training uses autocast for other precisions.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

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

RESIDUAL = ("o_proj.weight", "down_proj.weight")  # matrices that write into the residual stream


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
    """Build the model of a recipe, from scratch or with pretrained weights.

    Args:
        recipe: the `model` section.
        vocabulary: the vocabulary of the tokenizer.
        block_size: tokens that the model has to see at once.
        attention: the name of the attention implementation.
        seed: the seed of the initial weights.
        meta: build on the meta device, without memory for weights.
        added: tokens that were added to the tokenizer of pretrained weights.

    Raises:
        RecipeError: pretrained weights cannot be loaded, or do not fit the tokenizer or blocks.

    Example:
        >>> build_model(recipe.model, Vocabulary.of(tokenizer), block_size=recipe.data.block_size)
    """
    config = native_config(recipe, vocabulary, block_size=block_size, added=added)
    set_seed(seed)
    if recipe.pretrained and not meta:
        model = load_pretrained(recipe.pretrained, config)
    else:
        with torch.device("meta") if meta else nullcontext():
            model = AutoModelForCausalLM.from_config(config)
    if not recipe.pretrained:
        scale_residual(model)
    resize_embeddings(model, vocabulary.size)
    model.config.architectures = [type(model).__name__]
    set_special_tokens(model, vocabulary, keep=bool(recipe.pretrained))
    # transformers derives the loss from the class name, and GPT2LMHeadModel does not contain
    # "ForCausalLM": the Trainer would count one target per block too many, and the loss would be
    # (T-1)/T of the right value.
    model.loss_type = "ForCausalLM"
    if recipe.lora:
        set_seed(seed)
        add_lora(model, recipe.lora)
    if has_fast_paths(config):
        use_linear_cross_entropy(model)
        model.set_attn_implementation(attention)
    return model


def has_fast_paths(config: PreTrainedConfig) -> bool:
    """Return whether a model is of a family whose fast paths are tested, without special attention.

    A published model of such a family may declare sliding windows for some layers, which our
    attention does not have.
    """
    windows = set(getattr(config, "layer_types", None) or []) - {"full_attention"}
    return config.model_type in FAMILIES and not windows


def set_special_tokens(model: PreTrainedModel, vocabulary: Vocabulary, *, keep: bool) -> None:
    """Set the special tokens of a model and of its generation.

    Args:
        model: the model.
        vocabulary: the special tokens of the tokenizer.
        keep: keep the other tokens that end a text of a published model, such as the end of a turn,
            and its settings of sampling.
    """
    _, bos, eos, pad = vocabulary
    generation: Any = model.generation_config if keep else GenerationConfig()
    for config in (model.config.get_text_config(), generation):
        known = config.eos_token_id if keep else None
        known = known if isinstance(known, list) else [] if known is None else [known]
        all_eos = [*known, *([eos] if eos not in known else [])]
        config.eos_token_id = all_eos if len(all_eos) > 1 else all_eos[0]
        config.bos_token_id = config.bos_token_id if keep and bos is None else bos
    if not keep or generation.pad_token_id is None:
        generation.pad_token_id = eos if pad is None else pad
    model.generation_config = generation


def native_config(
    recipe: ModelRecipe, vocabulary: Vocabulary, *, block_size: int, added: int = 0
) -> PreTrainedConfig:
    """Return the configuration of the recipe's model, checked against vocabulary and blocks."""
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
        n_kv_head=recipe.n_kv_head,
        head_dim=recipe.head_dim,
        rope_theta=recipe.rope_theta,
        dropout=recipe.dropout,
        pad_vocab_to_multiple_of=recipe.pad_vocab_to_multiple_of,
        tie_word_embeddings=recipe.tie_word_embeddings,
        bos_token_id=vocabulary.bos_token_id,
        eos_token_id=vocabulary.eos_token_id,
    ).to_native()


def scale_residual(model: PreTrainedModel) -> None:
    """Initialise matrices that write into the residual stream with std 0.02/√(2·n_layer).

    This is GPT-2's initialisation (Radford et al., 2019); transformers has it for GPT-2 only.
    """
    config = model.config
    std = config.initializer_range / math.sqrt(2 * config.num_hidden_layers)
    for name, weight in model.named_parameters():
        if name.endswith(RESIDUAL):
            nn.init.normal_(weight, mean=0.0, std=std)


def transformer_blocks(model: nn.Module) -> nn.ModuleList:
    """Return the transformer blocks: the longest list of modules in the model."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=len)


def compile_blocks(model: nn.Module) -> None:
    """Compile each transformer block in place; all share one graph, so this takes seconds."""
    for block in transformer_blocks(model):
        block.compile()
