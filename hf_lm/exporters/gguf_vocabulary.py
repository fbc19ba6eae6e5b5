"""Describe a tokenizer in the terms of GGUF, the file format of llama.cpp.

llama.cpp knows how a published tokenizer splits text by a name. A tokenizer that is trained here
splits as GPT-2's does, so its vocabulary may be any, and its name is "gpt-2".
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from hf_lm.errors import RecipeError
from hf_lm.vocabulary import byte_tokenizer

WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
OTHERS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

# The names of llama.cpp (`llama_vocab::impl::load`) by the pattern with which text is split.
PATTERNS = {
    WORDS + r"\p{N}" + OTHERS: "qwen2",
    WORDS + r"\p{N}{1,3}" + OTHERS: "llama-bpe",
}

# llama.cpp refuses an empty list of merges. This one never applies: text starts as characters.
NO_MERGE = "no merge"

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # gguf.TokenType


class GgufVocabulary(NamedTuple):
    """A vocabulary as GGUF stores it.

    Attributes:
        pre: llama.cpp's name of the way to split text.
        tokens: the text of each id, with bytes written as GPT-2 writes them.
        types: NORMAL, CONTROL, USER_DEFINED or UNUSED for each id.
        merges: the merges of BPE, in order.
    """

    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str]


def gguf_vocabulary(tokenizer: PreTrainedTokenizerBase, rows: int) -> GgufVocabulary:
    """Describe a tokenizer for a model with some rows of embeddings.

    Raises:
        RecipeError: no runtime that reads GGUF splits text as it does.
    """
    if not tokenizer.is_fast:
        raise unsupported("it has no tokenizer.json")
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    normalizer = backend["normalizer"]
    if normalizer and normalizer["type"] != "NFC":
        raise unsupported(f"it changes text before it is split ({normalizer['type']})")
    model = backend["model"]
    if model["type"] == "WordLevel":
        pre, written = "gpt-2", {text: byte_text(text) for text in model["vocab"]}
        merges: list[Any] = []
    elif model["type"] == "BPE":
        pre, written, merges = split_name(backend["pre_tokenizer"], model), {}, model["merges"]
    else:
        raise unsupported(f"{model['type']} vocabularies are not written")
    tokens = [f"[unused {i}]" for i in range(rows)]
    types = [UNUSED] * rows
    for text, i in tokenizer.get_vocab().items():
        tokens[i], types[i] = written.get(text) or text, NORMAL
    for i, token in tokenizer.added_tokens_decoder.items():
        tokens[i], types[i] = token.content, CONTROL if token.special else USER_DEFINED
    lines = [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]
    return GgufVocabulary(pre, tokens, types, lines or [NO_MERGE])


def byte_text(text: str) -> str | None:
    """Return a character as the byte that GPT-2 writes for it; None for a special token.

    Raises:
        RecipeError: UTF-8 needs several bytes for it, which GGUF has no character tokens for.
    """
    if len(text) > 1:
        return None
    if ord(text) >= 0x80:
        raise unsupported(f"its characters, such as {text!r}, are not all of one byte")
    (written,) = byte_tokenizer().encode(text).tokens
    return written


def split_name(pre_tokenizer: Any, model: Any) -> str:
    """Return llama.cpp's name of the way in which byte-level BPE splits text.

    Raises:
        RecipeError: it has none.
    """
    parts = (pre_tokenizer or {}).get("pretokenizers", [pre_tokenizer])
    last = parts[-1] or {}
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        raise unsupported("its BPE is not of bytes")
    if len(parts) == 1 and (last["use_regex"] or not model["merges"]):
        return "gpt-2"
    first = parts[0]
    if len(parts) == 2 and first["type"] == "Digits" and first["individual_digits"]:
        return "smollm"
    name = PATTERNS.get(first.get("pattern", {}).get("Regex")) if len(parts) == 2 else None
    if name is None:
        raise unsupported("it splits text in a way that has no name in llama.cpp")
    return name


def unsupported(reason: str) -> RecipeError:
    """Create the error of a tokenizer that GGUF cannot hold."""
    return RecipeError(f"the tokenizer cannot be written to GGUF: {reason}")
