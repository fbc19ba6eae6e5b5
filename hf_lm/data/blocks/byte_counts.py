"""Count the bytes of source text that each validation block predicts.

Bits per byte compare models with different tokenizers only if the bytes are those of the text. Most
tokenizers spell their text, so that the bytes follow from the ids; WordPiece, Unigram and
normalizers do not, and their bytes are counted here from the offsets of the tokens.
"""

# Shapes: N tokens, B blocks, T tokens predicted in a block (`block_size`).

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from hf_lm.recipe import DataRecipe
from hf_lm.tokenizer import document_prefix, spells_text


def counts_bytes(tokenizer: PreTrainedTokenizerBase, data: DataRecipe) -> bool:
    """Return whether bytes have to be counted from the text, and can be."""
    return data.train_on == "text" and tokenizer.is_fast and not spells_text(tokenizer)


def bytes_note(tokenizer: PreTrainedTokenizerBase, data: DataRecipe) -> list[str]:
    """Say how bits per byte are computed with a tokenizer that changes text."""
    if spells_text(tokenizer):
        return []
    how = "count the bytes of the text itself"
    if not counts_bytes(tokenizer, data):
        how = "are an estimate: they count the bytes of the tokens"
    return [f"the tokenizer changes text (letters or white space); bits per byte {how}"]


def count_block_bytes(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, data: DataRecipe, blocks: int
) -> np.ndarray:
    """Count the bytes of each block [B] of joined documents.

    Args:
        texts: the documents of the blocks, in order.
        tokenizer: a tokenizer with offsets.
        data: the `data` section, with `block_size` and `append_eos`.
        blocks: the number of blocks.
    """
    length = blocks * data.block_size + 1 if blocks else 0  # the first token is not predicted
    sizes = np.fromiter(
        chain.from_iterable(document_bytes(texts, tokenizer, data)), np.int64, count=length
    )
    return sizes[1:].reshape(blocks, data.block_size).sum(axis=1)


def document_bytes(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, data: DataRecipe
) -> Iterator[np.ndarray]:
    """Yield the bytes [N] of the tokens of each document; its prefix and end-of-text have none.

    A token has the bytes up to its end that no earlier token has, so that white space without a
    token of its own belongs to the next one, or to the last.
    """
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    before = np.zeros(len(document_prefix(tokenizer)), np.int64)
    after = np.zeros(int(data.append_eos), np.int64)
    for text in texts:
        encoding = backend.encode(text, add_special_tokens=False)
        ends = np.array([end for _, end in encoding.offsets], np.int64)
        sizes_before = np.concatenate([[0], np.cumsum(character_bytes(text))])
        if len(ends):
            ends[-1] = len(text)
        sizes = np.diff(sizes_before[np.maximum.accumulate(ends)], prepend=0)
        yield np.concatenate([before, sizes, after])


def character_bytes(text: str) -> np.ndarray:
    """Return the length in UTF-8 of each character of a text."""
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    return 1 + (codes > 0x7F) + (codes > 0x7FF).astype(np.int64) + (codes > 0xFFFF)
