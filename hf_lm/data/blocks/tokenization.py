"""Tokenize documents on all cores.

Each core encodes other pieces of text: the Rust tokenizer releases Python's lock, and one piece is
converted to an array while the next is encoded. Long documents are cut into pieces where no token
can span the cut.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from hf_lm.errors import DataError
from hf_lm.system.processes import usable_cores
from hf_lm.tokenizer import document_prefix, unknown_character, vocabulary_size

PIECE = 64 * 2**10  # characters that a core encodes at once: 32 k and 256 k were 8 % slower
SAFE_CUT = re.compile(r"\S\n(?=\S)")  # a line end between words, where tokenizers split anyway
PROBE = "one\ntwo;\nthree 4\n(five)\n'six\nÄ\n_7"


def id_type(vocab_size: int) -> type[np.generic]:
    """Return the smallest integer type that holds every token id."""
    return np.uint16 if vocab_size <= 2**16 else np.int32


class Tokenize:
    """The first map step for text: turn documents into token ids, joined end to end.

    Text that looks like a special token is encoded as ordinary text.

    Args:
        tokenizer: turns text into ids.
        append_eos: whether an end-of-text id follows each document.
        cores: number of threads that encode; None means all cores.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, append_eos: bool, cores: int | None = None
    ) -> None:
        self.tokenizer, self.dtype = tokenizer, id_type(vocabulary_size(tokenizer))
        self.prefix = np.asarray(document_prefix(tokenizer), self.dtype)
        self.eos_ids = [tokenizer.eos_token_id] if append_eos else []
        # Tokenizers written in Python hold its lock, so more threads would not help.
        self.cores = (cores or usable_cores()) if tokenizer.is_fast else 1
        self.backend: Tokenizer | None = None
        # The tokenizer's own threads would compete with ours: 20 % slower on two cores.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        if tokenizer.is_fast:
            # A copy, so that truncation and padding set elsewhere do not apply here.
            self.backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
            self.backend.no_truncation()
            self.backend.no_padding()
            self.backend.encode_special_tokens = True
        self.splits_documents = self.backend is not None and self.can_split_documents()

    def __call__(self, batch: Mapping[str, Sequence[str]]) -> dict[str, np.ndarray]:
        """Tokenize the documents of a batch.

        Args:
            batch: has "text", a list of documents.

        Returns:
            "input_ids" [N], uint16 or int32, and "ends" [documents], the end of each document in
            them.
        """
        rows = self.encode(batch["text"])
        ends = np.cumsum([len(row) for row in rows], dtype=np.int64)
        ids = np.concatenate(rows) if rows else np.empty(0, self.dtype)
        return {"input_ids": ids, "ends": ends}

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the ids of each text, begun as its tokenizer begins it, and with end-of-text."""
        text_pieces = [self.split_text(text) for text in texts]
        batches = list(batched([piece for pieces in text_pieces for piece in pieces]))
        if len(batches) > 1 and self.cores > 1:
            with ThreadPoolExecutor(self.cores) as pool:
                encoded = [ids for batch in pool.map(self.encode_batch, batches) for ids in batch]
        else:
            encoded = [ids for batch in batches for ids in self.encode_batch(batch)]
        piece_ids = iter(encoded)
        eos_ids = np.asarray(self.eos_ids, self.dtype)
        return [
            np.concatenate([self.prefix, *(next(piece_ids) for _ in pieces), eos_ids])
            for pieces in text_pieces
        ]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the ids of each text, encoded by the calling thread.

        Raises:
            DataError: the tokenizer has no token for a character.
        """
        try:
            return self.encode_pieces(texts)
        except Exception as error:  # tokenizers raises a bare Exception
            for text in texts:
                if character := unknown_character(self.tokenizer, text):
                    raise DataError(
                        f"character {character!r} (U+{ord(character):04X}), in the text "
                        f"{excerpt(text, character)!r}: the tokenizer has no token for it; remove "
                        'it, or train a tokenizer of kind "bpe" or "byte", which knows every one'
                    ) from error
            raise

    def encode_pieces(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the ids of each text."""
        if self.backend is None:
            encoded: Sequence[Sequence[int]] = self.tokenizer(
                list(texts),
                add_special_tokens=False,
                split_special_tokens=True,
                return_attention_mask=False,
                verbose=False,  # it would warn that documents are longer than the model's context
            )["input_ids"]
            return [np.fromiter(ids, self.dtype, len(ids)) for ids in encoded]
        encodings = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        rows = (encoding.ids for encoding in encodings)
        return [np.fromiter(ids, self.dtype, len(ids)) for ids in rows]

    def split_text(self, text: str) -> list[str]:
        """Split a text into pieces of at most PIECE characters, without changing its ids."""
        if len(text) <= PIECE or not self.splits_documents:
            return [text]
        bounds = [0]
        while len(text) - bounds[-1] > PIECE:
            bounds.append(cut_before(text, bounds[-1], bounds[-1] + PIECE))
        return [text[start:end] for start, end in pairwise([*bounds, len(text)])]

    def can_split_documents(self) -> bool:
        """Test whether cutting a text at line ends leaves its ids unchanged.

        It does for tokenizers that split as GPT-2's does. Tokenizers that mark the beginning of a
        text, as those of SentencePiece do, encode each document at once.
        """
        try:
            whole, *lines = self.encode_batch([PROBE, *PROBE.splitlines(keepends=True)])
        except Exception:  # the tokenizer's alphabet may lack a character of the probe
            return False
        return np.array_equal(whole, np.concatenate(lines))


def excerpt(text: str, character: str) -> str:
    """Return a character with what stands around it in a text."""
    place = text.index(character)
    return " ".join(text[max(0, place - 30) : place + 30].split())


def cut_before(text: str, start: int, limit: int) -> int:
    """Return the last safe place to cut a text between `start` and `limit`.

    If no line end stands between words, it is the last line end of any kind, or else `limit`; both
    may split a token.
    """
    for width in (2**12, limit - start):
        safe_cuts = [
            match.end() for match in SAFE_CUT.finditer(text, max(start, limit - width), limit)
        ]
        if safe_cuts:
            return safe_cuts[-1]
    return text.rfind("\n", start, limit) + 1 or limit


def batched(pieces: Sequence[str]) -> Iterator[list[str]]:
    """Join neighbouring pieces into batches of at most PIECE characters."""
    batch: list[str] = []
    size = 0
    for piece in pieces:
        if batch and size + len(piece) > PIECE:
            yield batch
            batch, size = [], 0
        batch.append(piece)
        size += len(piece)
    if batch:
        yield batch
