"""GPTConfig: GPT-2's parameter names for every supported family.

Models are saved with the family's own configuration, so they load without hf_lm.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from huggingface_hub.dataclasses import strict
from transformers import (
    ArceeConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    Qwen3Config,
)

GATED = {"qwen3", "llama"}  # SwiGLU: three matrices in the MLP instead of two


MODERN: dict[str, Callable[..., PreTrainedConfig]] = {
    "qwen3": Qwen3Config,  # rotary positions, RMSNorm, QK-norm, SwiGLU
    "llama": LlamaConfig,  # the same without QK-norm
    "arcee": ArceeConfig,  # rotary positions, RMSNorm, squared ReLU
}


FAMILIES = ("gpt2", *MODERN)


class Vocabulary(NamedTuple):
    """The facts about a tokenizer that a model depends on."""

    size: int
    bos_token_id: int | None
    eos_token_id: int
    pad_token_id: int | None = None

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
        """Return the vocabulary of a tokenizer; its size follows from the largest id."""
        largest = max(tokenizer.get_vocab().values())
        return cls(
            largest + 1, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
        )


@strict
class GPTConfig(GPT2Config):
    """The configuration of a model of any family, with GPT-2's parameter names.

    Args:
        family: "gpt2", "qwen3", "llama" or "arcee".
        dropout: one number for every place where the family has dropout.
        pad_vocab_to_multiple_of: embedding rows are rounded up to a multiple of this.
        n_kv_head: heads of keys and values; None is n_head. These three are not in gpt2.
        head_dim: width of a head; None is n_embd/n_head.
        rope_theta: base of the rotary positions.

    Raises:
        ValueError: the numbers do not fit each other.
    """

    family: str = "gpt2"
    dropout: float = 0.0
    pad_vocab_to_multiple_of: int | None = None
    n_kv_head: int | None = None
    head_dim: int | None = None
    rope_theta: float = 10_000.0
    # The same function as GPT-2's "gelu_new", in one fused kernel instead of eight operations.
    activation_function: str = "gelu_pytorch_tanh"

    def __post_init__(self, **kwargs: object) -> None:
        """Copy the dropout to all its places and round up the vocabulary."""
        self.resid_pdrop = self.embd_pdrop = self.attn_pdrop = self.dropout
        multiple = self.pad_vocab_to_multiple_of or 1
        self.vocab_size = -(-self.vocab_size // multiple) * multiple
        super().__post_init__(**kwargs)

    def validate_numbers(self) -> None:
        """Check the numbers that would otherwise fail, or silently go wrong, inside the model.

        Raises:
            ValueError: one is not valid.
        """
        if self.family not in FAMILIES:
            raise ValueError(f"family = {self.family!r}: must be one of {', '.join(FAMILIES)}")
        unit = self.n_head if self.family == "gpt2" else 2 * self.n_head
        is_whole = bool(self.head_dim) or self.n_embd % unit == 0
        if min(self.n_layer, self.n_head, self.n_embd) < 1 or not is_whole:
            raise ValueError(f"n_embd = {self.n_embd} must be a positive multiple of {unit}")
        if self.n_head % (self.n_kv_head or 1):
            raise ValueError(f"n_kv_head = {self.n_kv_head} must divide n_head = {self.n_head}")
        if self.head_dim and self.head_dim % 2:
            raise ValueError(f"head_dim = {self.head_dim} must be even, for rotary positions")
        for name in ("bos_token_id", "eos_token_id"):
            token = getattr(self, name)
            if isinstance(token, int) and not 0 <= token < self.vocab_size:
                raise ValueError(f"{name} = {token} is outside the {self.vocab_size} tokens")

    @property
    def inner(self) -> int:
        """Width of the MLP: 4·n_embd, or 8/3·n_embd rounded up to 64 for a gated one.

        A gate adds a third matrix; with two thirds of the width it costs as much as without a gate
        (Shazeer, 2020, arXiv:2002.05202).
        """
        if self.n_inner:
            return self.n_inner
        return -(-8 * self.n_embd // 3 // 64) * 64 if self.family in GATED else 4 * self.n_embd

    def to_native(self) -> PreTrainedConfig:
        """Return the configuration class of the family, with its native `model_type`."""
        shared = {
            "vocab_size": self.vocab_size,
            "initializer_range": self.initializer_range,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_token_id,
            "tie_word_embeddings": self.tie_word_embeddings,
        }
        if self.family == "gpt2":
            names = ("n_positions", "n_embd", "n_layer", "n_head", "n_inner")
            names += ("resid_pdrop", "embd_pdrop", "attn_pdrop", "activation_function")
            gpt2_only = {name: getattr(self, name) for name in names}
            gpt2_only["n_ctx"] = self.n_positions  # llama.cpp reads it
            return GPT2Config(**shared, **gpt2_only)
        return MODERN[self.family](
            **shared,
            hidden_size=self.n_embd,
            intermediate_size=self.inner,
            num_hidden_layers=self.n_layer,
            num_attention_heads=self.n_head,
            num_key_value_heads=self.n_kv_head or self.n_head,
            head_dim=self.head_dim or self.n_embd // self.n_head,
            rope_parameters={"rope_type": "default", "rope_theta": self.rope_theta},
            max_position_embeddings=self.n_positions,
            attention_dropout=self.dropout,
        )
