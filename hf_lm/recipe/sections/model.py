"""Recipe section `model`."""

from __future__ import annotations

from typing import Literal, NamedTuple

from pydantic import Field

from hf_lm.recipe.sections.base import Section


class Shape(NamedTuple):
    """The layers, heads and width of a model, with GPT-2's names."""

    n_layer: int
    n_head: int
    n_embd: int


SIZES = {  # GPT-2's four published sizes (Radford et al., 2019, table 2)
    "small": Shape(12, 12, 768),
    "medium": Shape(24, 16, 1024),
    "large": Shape(36, 20, 1280),
    "xl": Shape(48, 25, 1600),
}


class LoraRecipe(Section):
    """Low-rank adapters, trained instead of pretrained weights; they need the extra `[lora]`."""

    r: int = Field(16, gt=0, description="rank of the adapters")
    alpha: int = Field(32, gt=0, description="the adapters are scaled by alpha/r")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout of their input")
    target_modules: tuple[str, ...] | Literal["auto"] = Field(
        "auto", description="ends of the names of the layers with an adapter; auto: all linear ones"
    )
    merge: bool = Field(False, description="save the whole model, with the adapters merged into it")


class ModelRecipe(Section):
    """The model, from scratch or from pretrained weights."""

    family: Literal["gpt2", "qwen3", "llama", "arcee"] = Field(
        "gpt2", description="architecture, from transformers; all have GPT-2's key names here"
    )
    size: Literal["small", "medium", "large", "xl"] | None = Field(
        None, description="a published GPT-2 size, instead of n_layer, n_head and n_embd"
    )
    n_layer: int | None = Field(None, gt=0, description="transformer blocks")
    n_head: int | None = Field(None, gt=0, description="attention heads per block")
    n_embd: int | None = Field(None, gt=0, description="width of the residual stream")
    n_inner: int | None = Field(
        None, gt=0, description="width of the MLP; null: 4·n_embd, or 8/3·n_embd if it is gated"
    )
    n_kv_head: int | None = Field(
        None,
        gt=0,
        description="heads of keys and values, which query heads share; null: n_head; not in gpt2",
    )
    head_dim: int | None = Field(
        None, gt=0, description="width of a head; null: n_embd/n_head; not in gpt2"
    )
    rope_theta: float = Field(
        10_000.0, gt=0, description="base of the rotary positions; not in gpt2"
    )
    n_positions: int | None = Field(
        None, gt=0, description="longest context in tokens; null: data.block_size"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout wherever the family has it")
    tie_word_embeddings: bool = Field(True, description="one matrix for input and output tokens")
    pad_vocab_to_multiple_of: int | None = Field(
        None, gt=0, description="round the embedding rows up, for speed on a GPU; 64 is usual"
    )
    pretrained: str | None = Field(
        None, min_length=1, description="folder or Hub id of the model to fine-tune"
    )
    lora: LoraRecipe | None = Field(None, description="train adapters instead of its weights")
    save_dtype: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="type of the saved weights; auto: that of the pretrained weights, otherwise "
        "fp32; training and checkpoints are in fp32",
    )

    @property
    def shape(self) -> Shape:
        """The layers, heads and width; what is not set is that of the size, or of GPT-2 small."""
        named = SIZES[self.size or "small"]
        return Shape(
            self.n_layer or named.n_layer, self.n_head or named.n_head, self.n_embd or named.n_embd
        )
