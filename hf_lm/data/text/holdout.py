"""Choose the held-out documents by content hash."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from hf_lm.errors import DataError

HASHES = 2**63  # Arrow has signed 64-bit numbers


class Holdout(NamedTuple):
    """A rule that says which text is held out.

    Attributes:
        hash_threshold: documents with a content hash below it are held out.
        cut: for a corpus of one document, the position in its text from which it is held out.
        dropped: content hashes of documents that would be held out and are left out instead.
    """

    hash_threshold: int
    cut: int | None = None
    dropped: frozenset[int] = frozenset()


def content_hash(text: bytes) -> int:
    """Hash a text to a number below HASHES: the start of its SHA-256."""
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


def choose_holdout(hashes: set[int], text: str, holdout: float | None) -> Holdout:
    """Choose a share of the documents by content hash: at least one document, and never all.

    Args:
        hashes: the content hashes of the documents.
        text: the text of the first one.
        holdout: the share to hold out; None holds nothing out.

    Raises:
        DataError: there is one document of one character, so it cannot be cut.
    """
    if holdout is None or not hashes:
        return Holdout(0)
    if len(hashes) == 1:
        return Holdout(0, cut_near(text, round(len(text) * (1 - holdout))))
    return Holdout(min(max(int(holdout * HASHES), min(hashes) + 1), max(hashes)))


def cut_near(text: str, goal: int) -> int:
    """Return a position inside the text near `goal` at which it can be cut.

    That is after the nearest line end; in a text of one line, after the nearest space; without
    any, between two characters.

    Raises:
        DataError: the text has one character.
    """
    for mark in ("\n", " "):
        ends = [text.rfind(mark, 0, goal) + 1, text.find(mark, goal) + 1]
        ends = [end for end in ends if 0 < end < len(text)]
        if ends:
            return min(ends, key=lambda end: abs(end - goal))
    if len(text) < 2:
        raise DataError("the text is one character, so nothing can be held out")
    return min(max(goal, 1), len(text) - 1)
