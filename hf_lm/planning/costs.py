"""Estimate model size, FLOPs per token and activation memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from hf_lm.model.loss import has_linear_loss

# Bytes of a parameter: fp32 weight, gradient and optimizer state. Muon's matrices need 4 less.
STATE_BYTES = {"muon": 16, "adamw": 16, "adam": 16, "sgd": 12}


@dataclass(frozen=True)
class ModelSize:
    """The sizes of a model that determine its costs.

    Attributes:
        parameters: the number of all parameters.
        trained: the number of trained parameters.
        matrix_parameters: weights that a token is multiplied with, output matrix included.
        n_layer: transformer blocks.
        n_embd: width.
        attention_width: heads × width of a head, which may differ from n_embd.
        vocab_size: rows of the embedding.
        has_full_logits: whether the loss holds the logits of a whole batch.
    """

    parameters: int
    trained: int
    matrix_parameters: int
    n_layer: int
    n_embd: int
    attention_width: int
    vocab_size: int
    has_full_logits: bool


def describe_model(model: PreTrainedModel) -> ModelSize:
    """Return the sizes of a transformers model; its weights may be on the meta device."""
    config = model.config.get_text_config()
    output: Any = model.get_output_embeddings()
    tables = {m.weight for m in model.modules() if isinstance(m, nn.Embedding)} - {output.weight}
    used = used_experts(config)
    matrices = sum(
        p.numel() * (used if "experts" in name.split(".") else 1.0)
        for name, p in model.named_parameters()
        if p.ndim >= 2 and p not in tables
    )
    heads = getattr(config, "num_attention_heads", None)
    head_width = getattr(config, "head_dim", None)
    return ModelSize(
        parameters=sum(p.numel() for p in model.parameters()),
        trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
        matrix_parameters=round(matrices),
        n_layer=config.num_hidden_layers,
        n_embd=config.hidden_size,
        attention_width=heads * head_width if heads and head_width else config.hidden_size,
        vocab_size=config.vocab_size,
        has_full_logits=not has_linear_loss(model),
    )


def used_experts(config: PreTrainedConfig) -> float:
    """Return the share of the experts of a layer that a token uses; 1 without experts."""
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    experts = next((getattr(config, n) for n in names if getattr(config, n, None)), None)
    used = getattr(config, "num_experts_per_tok", None)
    return used / experts if experts and used else 1.0


def flops_per_token(model_size: ModelSize, block_size: int) -> float:
    """Return the FLOPs to train on one token: 6 per matrix weight, plus causal attention.

    Kaplan et al., 2020 (arXiv:2001.08361), table 1, with the causal half of attention only: a token
    attends to half a block on average. A frozen weight costs 4, as it has no gradient.
    """
    attention = 12 * model_size.n_layer * model_size.attention_width * block_size / 2
    matrices = model_size.matrix_parameters
    return 4 * matrices + 2 * min(matrices, model_size.trained) + attention


def activation_bytes(
    model_size: ModelSize, blocks: int, block_size: int, *, activation_checkpointing: bool
) -> int:
    """Estimate the bytes that the forward pass keeps for the backward pass.

    A token needs about 40 fp32 numbers per layer and unit of width (Korthikanti et al., 2022,
    arXiv:2205.05198, for attention that does not keep its scores), or 2 with activation
    checkpointing. The loss needs four copies of the logits; a loss without logits needs the
    gradient of the output matrix.

    Args:
        model_size: the sizes of the model.
        blocks: blocks of a micro-batch.
        block_size: tokens of a block.
        activation_checkpointing: whether activations are computed again in the backward pass.
    """
    tokens, vocabulary = blocks * block_size, model_size.vocab_size
    layers = (
        tokens * (2 if activation_checkpointing else 40) * model_size.n_layer * model_size.n_embd
    )
    loss = vocabulary * (4 * tokens if model_size.has_full_logits else model_size.n_embd)
    return 4 * (layers + loss)
