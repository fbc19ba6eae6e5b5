"""Tokenize documents on all cores.

Every core encodes pieces of its own: the tokenizer leaves Python's lock, and converting one piece
goes on beside encoding the next. Pieces of long documents are cut where no token can reach across.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

PIECE = 64 * 2**10  # characters encoded at once by one core: 32 k and 256 k were 8 % slower


SAFE_CUT = re.compile(r"\S\n(?=\S)")  # a line end between words: tokenizers split here anyway


PROBE = "one\ntwo;\nthree 4\n(five)\n'six\nÄ\n_7"


def id_type(vocab_size: int) -> type[np.generic]:
    """The smallest integer that holds every token id."""
    return np.uint16 if vocab_size <= 2**16 else np.int32


class Tokenize:
    """Token ids of the documents of a portion, end to end; a special token's text stays text.

    Args:
        tokenizer: text to ids.
        append_eos: whether each document is closed by end-of-text.
        cores: that encode; None is all.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, append_eos: bool, cores: int | None = None
    ) -> None:
        self.tokenizer, self.type = tokenizer, id_type(len(tokenizer))
        self.end = [tokenizer.eos_token_id] if append_eos else []
        allowed = (
            len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        )
        self.cores = (
            (cores or allowed or 1) if tokenizer.is_fast else 1
        )  # Python's own share a lock
        self.backend: Tokenizer | None = None
        # Its own threads would contend with ours: 20 % slower on two cores.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        if tokenizer.is_fast:  # a copy: nobody else's truncation or padding reaches it
            self.backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
            self.backend.no_truncation()
            self.backend.no_padding()
            self.backend.encode_special_tokens = True
        self.cuts = self.backend is not None and self.can_split_documents()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Add the ids [N] of a portion, and the place behind each document's last.

        Args:
            batch: a row with "text", a list of documents.

        Returns:
            "input_ids" [N], uint16 or int32, and "ends" [documents].
        """
        rows = self.encode(batch["text"])
        ends = np.cumsum([len(row) for row in rows], dtype=np.int64)
        ids = np.concatenate(rows) if rows else np.empty(0, self.type)
        return {"input_ids": ids, "ends": ends}

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text, closed by end-of-text."""
        pieces = [self.pieces_of(text) for text in texts]
        batches = list(batched([piece for row in pieces for piece in row]))
        if len(batches) > 1 and self.cores > 1:
            with ThreadPoolExecutor(self.cores) as pool:
                encoded = [ids for batch in pool.map(self.encode_batch, batches) for ids in batch]
        else:
            encoded = [ids for batch in batches for ids in self.encode_batch(batch)]
        found = iter(encoded)
        end = np.asarray(self.end, self.type)
        return [np.concatenate([*(next(found) for _ in row), end]) for row in pieces]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of some texts, on one core."""
        if self.backend is None:
            encoded: Any = self.tokenizer(
                list(texts),
                add_special_tokens=False,
                split_special_tokens=True,
                return_attention_mask=False,
                verbose=False,  # documents are longer than the model's context by design
            )["input_ids"]
        else:
            found = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
            encoded = (encoding.ids for encoding in found)
        return [np.fromiter(ids, self.type, len(ids)) for ids in encoded]

    def pieces_of(self, text: str) -> list[str]:
        """A text as pieces of up to PIECE characters that give the same ids one by one."""
        if len(text) <= PIECE or not self.cuts:
            return [text]
        bounds = [0]
        while len(text) - bounds[-1] > PIECE:
            bounds.append(cut_before(text, bounds[-1], bounds[-1] + PIECE))
        return [text[start:end] for start, end in pairwise([*bounds, len(text)])]

    def can_split_documents(self) -> bool:
        """Whether ids stay the same when a text is cut at line ends, as for GPT-2's splitting.

        Tokenizers that mark the beginning of a text, as SentencePiece's do, are given it whole.
        """
        try:
            whole, *lines = self.encode_batch([PROBE, *PROBE.splitlines(keepends=True)])
        except Exception:  # an alphabet that does not hold the probe
            return False
        return np.array_equal(whole, np.concatenate(lines))


def cut_before(text: str, start: int, limit: int) -> int:
    """The last safe place to cut before `limit`; any line end, or the limit, where there is none.

    One of these costs a token boundary in a piece without a single line end between words.
    """
    for width in (2**12, limit - start):
        safe = [match.end() for match in SAFE_CUT.finditer(text, max(start, limit - width), limit)]
        if safe:
            return safe[-1]
    return text.rfind("\n", start, limit) + 1 or limit


def batched(pieces: Sequence[str]) -> Iterator[list[str]]:
    """Neighbouring pieces together, up to PIECE characters."""
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
