"""Recipe section `tokenizer`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from hf_lm.recipe.sections.base import Section


class TrainTokenizer(Section):
    """A tokenizer trained on the training text of the recipe."""

    kind: Literal["bpe", "char", "byte"] = Field(
        "bpe", description="byte-level BPE, one token per character, or one token per byte"
    )
    vocab_size: int | None = Field(None, gt=0, description="tokens of a bpe vocabulary; null: 8192")


class TokenizerRecipe(Section):
    """The tokenizer: a pretrained one, or one trained on the text."""

    pretrained: str | None = Field(None, min_length=1, description="folder or Hub id to load")
    train: TrainTokenizer | None = Field(
        None, description="train one instead; a model from scratch gets a trained bpe by default"
    )
    eos_token: str | None = Field(
        None,
        min_length=1,
        description="end-of-text token of a pretrained tokenizer that declares none, or another "
        "one; it is added if it is new",
    )
    bos_token: str | None = Field(
        None, min_length=1, description="the same for the token that begins a text"
    )
    pad_token: str | None = Field(None, min_length=1, description="the same for padding")
    add_tokens: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        (),
        description="special tokens to add to a pretrained tokenizer, such as those of a chat "
        "template; the embeddings of model.pretrained are resized",
    )
    chat_template: str | None = Field(
        None,
        min_length=1,
        description="Jinja template that renders messages, instead of the tokenizer's own, or the "
        "path of a .jinja file",
    )

    @property
    def special_tokens(self) -> dict[str, str]:
        """The special tokens that the recipe names, by the names that transformers has."""
        names = ("eos_token", "bos_token", "pad_token")
        return {name: token for name in names if (token := getattr(self, name))}
