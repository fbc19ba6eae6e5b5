"""Count the parameters of a model and the FLOPs of a token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

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
    """

    parameters: int
    trained: int
    matrix_parameters: int
    n_layer: int
    n_embd: int
    attention_width: int
    vocab_size: int


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
