"""Find held-out documents that are nearly in the training text: edited copies of a page, say.

They flatter every figure of the held-out text, because the model has seen most of their words.
Documents are compared by MinHash with locality-sensitive hashing (Broder, 1997; Leskovec et al.,
"Mining of Massive Datasets", chapter 3), from the `rensa` package. Only the signatures of the
held-out documents are in memory.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

from hf_lm.data.text.documents import Document
from hf_lm.errors import DataError

RUN = 5  # words that are compared together
HASHES, BANDS, SEED = 128, 32, 1  # at a similarity of 0.8, a pair is met with 1 - 5e-8

# Thai, Lao, Chinese, Japanese and Korean are compared by character: they have no or few spaces.
UNSPACED = "\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
WORD = re.compile(f"[{UNSPACED}]|[^\\W{UNSPACED}]+")


class NearDuplicates(NamedTuple):
    """The held-out documents that are nearly in the training text.

    Attributes:
        hashes: their content hashes.
        size: bytes in them.
        documents: how many documents are held out.
        held_out: bytes in all of those.
    """

    hashes: frozenset[int]
    size: int
    documents: int
    held_out: int

    @property
    def share(self) -> float:
        """The share of the held-out text that they are."""
        return self.size / self.held_out if self.held_out else 0.0


def check_rensa() -> None:
    """Check that the package that compares documents is installed.

    Raises:
        DataError: it is not.
    """
    if find_spec("rensa") is None:
        raise DataError("data.near_duplicates needs rensa; pip install 'hf_lm[dedup]'")


def find_near_duplicates(
    documents: Callable[[], Iterator[Document]], *, threshold: float
) -> NearDuplicates:
    """Compare the held-out documents with those of the training text.

    Args:
        documents: called twice; returns every document with its final split.
        threshold: the share of the runs of five words that two documents must have in common, as
            estimated from 128 hashes: with a standard error of 0.035 at 0.8.
    """
    index = rensa().RMinHashLSH(threshold=threshold, num_perm=HASHES, num_bands=BANDS)
    held_out: list[Document] = []
    signatures: list[Any] = []
    for document in documents():
        if document.split == "validation":
            signatures.append(signature(document.text))
            index.insert(len(held_out), signatures[-1])
            held_out.append(document._replace(text=""))
    near = set[int]()
    for document in documents():
        if document.split == "train" and len(near) < len(held_out):
            found = signature(document.text)
            near.update(
                number
                for number in index.query(found)
                if number not in near and found.jaccard(signatures[number]) >= threshold
            )
    return NearDuplicates(
        hashes=frozenset(held_out[number].hash for number in near),
        size=sum(held_out[number].size for number in near),
        documents=len(held_out),
        held_out=sum(document.size for document in held_out),
    )


def rensa() -> Any:
    """Import the package that compares documents; it has no types."""
    return import_module("rensa")


def signature(text: str) -> Any:
    """Return the MinHash of a text: of its runs of five words, without case and punctuation."""
    words = WORD.findall(text.lower())
    runs = zip(*(words[start:] for start in range(RUN)), strict=False)
    made = rensa().RMinHash(num_perm=HASHES, seed=SEED)
    made.update([" ".join(run) for run in runs] or [" ".join(words)])
    return made
