"""Recipe section `tokenizer`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from hf_lm.recipe.sections.base import Section


class TrainTokenizer(Section):
    """A tokenizer trained on the recipe's own training text."""

    kind: Literal["bpe", "char", "byte"] = Field(
        "bpe", description="byte-level BPE, one token a character, or one token a byte"
    )
    vocab_size: int | None = Field(
        None, gt=0, description="tokens of a bpe vocabulary; 8192 unless set"
    )


class TokenizerRecipe(Section):
    """Which tokenizer: a ready one, or one trained here."""

    pretrained: str | None = Field(None, min_length=1, description="folder or Hub id to load")
    train: TrainTokenizer | None = Field(
        None, description="train one instead; the default, as bpe, for a model from scratch"
    )
    add_tokens: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        (),
        description="special tokens to add to a pretrained one, as the marks of a chat template; "
        "the embeddings of model.pretrained grow",
    )
    chat_template: str | None = Field(
        None,
        min_length=1,
        description="Jinja that renders messages, in place of the tokenizer's own, or a file with "
        "it that ends in .jinja",
    )
