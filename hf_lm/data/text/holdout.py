"""Choose the held-out documents by content hash."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from hf_lm.errors import DataError

HASHES = 2**63  # Arrow has signed 64-bit numbers


class Holdout(NamedTuple):
    """Which documents are held out: hashes below `below`, or of an only one what follows `cut`."""

    hash_threshold: int
    cut: int | None = None


def content_hash(text: bytes) -> int:
    """A number below HASHES that depends on a document's text alone: the start of its SHA-256."""
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


def choose_holdout(hashes: set[int], text: str, holdout: float | None) -> Holdout:
    """Hold out a share by content, but one document at least, and never all.

    Args:
        hashes: of the documents to split.
        text: the first of them.
        holdout: the share; None holds nothing out.

    Raises:
        DataError: there is one document, and no line to cut it at.
    """
    if holdout is None or not hashes:
        return Holdout(0)
    if len(hashes) == 1:
        return Holdout(0, line_end_near(text, round(len(text) * (1 - holdout))))
    return Holdout(min(max(int(holdout * HASHES), min(hashes) + 1), max(hashes)))


def line_end_near(text: str, goal: int) -> int:
    """The place behind a line end that is nearest to `goal`, inside the text."""
    ends = [text.rfind("\n", 0, goal) + 1, text.find("\n", goal) + 1]
    ends = [end for end in ends if 0 < end < len(text)]
    if not ends:
        raise DataError(
            "the text is one line of one document: nothing can be held out; add documents, or give "
            "data.validation a source of its own"
        )
    return min(ends, key=lambda place: abs(place - goal))
