"""Estimate model size, FLOPs per token and activation memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from hf_lm.model.config import FAMILIES

# fp32 weight, gradient and optimizer state of a parameter; Muon's matrices have one number less
STATE_BYTES = {"muon": 16, "adamw": 16, "adam": 16, "sgd": 12}


@dataclass(frozen=True)
class ModelSize:
    """The sizes of a network that its costs follow from."""

    parameters: int
    trained: int  # of them
    matrix_parameters: int  # weights that each token is multiplied with, the output matrix included
    n_layer: int
    n_embd: int
    vocab_size: int
    logits: bool  # whether the loss holds those of a whole batch


def describe_model(model: PreTrainedModel) -> ModelSize:
    """The sizes of a transformers model; weights on the meta device count too."""
    config = model.config
    embedding: Any = model.get_input_embeddings().weight
    output: Any = model.get_output_embeddings()
    matrices = sum(p.numel() for p in model.parameters() if p.ndim >= 2)
    positions = sum(p.numel() for name, p in model.named_parameters() if "wpe" in name)
    looked_up = positions + (0 if output.weight is embedding else embedding.numel())
    return ModelSize(
        parameters=sum(p.numel() for p in model.parameters()),
        trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
        matrix_parameters=matrices - looked_up,
        n_layer=config.num_hidden_layers,
        n_embd=config.hidden_size,
        vocab_size=config.vocab_size,
        logits=config.model_type not in FAMILIES,
    )


def flops_per_token(model_size: ModelSize, block_size: int) -> float:
    """FLOPs to train on one token: 6 a matrix weight, and attention over half a block on average.

    Kaplan et al., 2020 (arXiv:2001.08361), table 1, with the causal half of attention only. Of a
    weight that is not trained it is 4: no gradient of its own.
    """
    attention = 12 * model_size.n_layer * model_size.n_embd * block_size / 2
    matrices = model_size.matrix_parameters
    return 4 * matrices + 2 * min(matrices, model_size.trained) + attention


def activation_bytes(
    model_size: ModelSize, blocks: int, block_size: int, *, activation_checkpointing: bool
) -> int:
    """Bytes that the forward pass keeps for the backward one, for `blocks` blocks at a time.

    About 40 numbers a layer and unit of width (Korthikanti et al., 2022, arXiv:2205.05198, with
    attention that keeps no matrix of scores), in fp32, and of the loss four copies of the logits,
    or where it is made without them the gradient of the output matrix.
    """
    tokens, vocabulary = blocks * block_size, model_size.vocab_size
    layers = (
        tokens * (2 if activation_checkpointing else 40) * model_size.n_layer * model_size.n_embd
    )
    loss = vocabulary * (4 * tokens if model_size.logits else model_size.n_embd)
    return 4 * (layers + loss)
