"""Group token ids into blocks, concatenated or packed by best fit.

A row's first `block_size` ids predict its last, so every token is predicted exactly once.
  concat    documents end to end; rows overlap by one id, and nothing is padded. The price: a block
            may span documents (`document_mask` hides one from the other).
  best_fit  documents are packed so that none is cut that fits a block (Ding et al., 2024,
            arXiv:2404.10830). The price: about 1 % of the ids is padding, and none is counted.
"""

# Shapes: B blocks, T tokens predicted in a block (`block_size`), N tokens.

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

PACKED = 2**21  # tokens packed at once: few are left over, and a stream repeats them to resume


class Grouper(Protocol):
    """Ids of one lane in, blocks out, with what waits for more text in between.

    Attributes:
        tail: the ids that wait, and that a resumed stream is given.
        padded: ids added to fill blocks so far.
    """

    tail: np.ndarray
    padded: int

    @property
    def at_boundary(self) -> bool:
        """Whether nothing waits but the tail."""

    @property
    def unused(self) -> int:
        """Ids that would fill no block if the text ended here."""

    def add(self, ids: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Blocks [B, T+1] from documents; without any, from what waits."""


def make_grouper(
    grouping: str, *, block_size: int, eos: int, kind: type[np.generic], whole: bool = False
) -> Grouper:
    """The grouping a recipe asks for.

    Args:
        grouping: "concat" or "best_fit".
        block_size: T.
        eos: end-of-text id, which best_fit pads with.
        kind: type of an id.
        whole: whether best_fit leaves out documents that are longer than a block.
    """
    if grouping == "best_fit":
        return BestFit(block_size, eos, kind, whole=whole)
    return Concat(block_size, np.empty(0, kind))


class Concat:
    """All documents as one stream."""

    at_boundary = True

    def __init__(self, block_size: int, tail: np.ndarray) -> None:
        self.block_size, self.tail, self.padded = block_size, tail, 0

    @property
    def unused(self) -> int:
        """The tail, but for its first id, which the last block has predicted."""
        return max(0, len(self.tail) - 1)

    def add(self, ids: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Blocks [B, T+1] of everything so far; up to T+1 ids wait."""
        stream = np.concatenate([self.tail, ids])
        rows = cut(stream, block_size=self.block_size)
        self.tail = stream[len(rows) * self.block_size :].copy()
        return rows


def cut(stream: np.ndarray, *, block_size: int) -> np.ndarray:
    """The stream [N] as a view [B, T+1]: each row begins with the last id of the one before."""
    if len(stream) <= block_size:
        return np.empty((0, block_size + 1), stream.dtype)
    windows = np.lib.stride_tricks.sliding_window_view(stream, block_size + 1)
    return windows[::block_size]


class Piece(NamedTuple):
    """Neighbouring ids that stay together."""

    start: int
    end: int

    @property
    def size(self) -> int:
        """Number of ids."""
        return self.end - self.start


class BestFit:
    """Documents packed into blocks, the longest first, each into the fullest block that has room.

    A block begins with an end-of-text, which predicts the first token of its first document. Of a
    document longer than a block, whole blocks are cut off, overlapping by one id; the rest opens
    a block of its own behind the id before it; or with `whole`, none of it is used.
    """

    def __init__(
        self, block_size: int, eos: int, kind: type[np.generic], *, whole: bool = False
    ) -> None:
        self.block_size, self.eos, self.whole = block_size, eos, whole
        self.padded, self.unused = 0, 0
        self.tail = np.empty(0, kind)
        self.waiting: list[tuple[np.ndarray, np.ndarray]] = []
        self.size = 0

    @property
    def at_boundary(self) -> bool:
        """Whether no document waits to be packed."""
        return not self.waiting

    def add(self, ids: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Blocks [B, T+1] once PACKED ids have come together, or the text ends."""
        if len(ends):
            self.waiting.append((ids, ends))
            self.size += len(ids)
        if self.waiting and (self.size >= PACKED or not len(ends)):
            return self.pack()
        return np.empty((0, self.block_size + 1), self.tail.dtype)

    def pack(self) -> np.ndarray:
        """Blocks of all documents that wait."""
        ids = np.concatenate([ids for ids, _ in self.waiting])
        shifts = np.cumsum([0, *(len(ids) for ids, _ in self.waiting)])
        ends = [
            end
            for (_, own), shift in zip(self.waiting, shifts, strict=False)
            for end in (own + shift).tolist()
        ]
        self.waiting, self.size = [], 0
        bins = fill_bins(ends, self.block_size, whole=self.whole)
        self.unused += len(ids) - sum(piece.size for pieces in bins for piece in pieces)
        rows = np.full((len(bins), self.block_size + 1), self.eos, self.tail.dtype)
        starts = {0, *ends}
        for row, pieces in zip(rows, bins, strict=True):
            first = pieces[0].start
            row[0] = self.eos if first in starts else ids[first - 1]
            place = 1
            for piece in pieces:
                row[place : place + piece.size] = ids[piece.start : piece.end]
                place += piece.size
            self.padded += len(row) - place
        return rows


def fill_bins(ends: Sequence[int], size: int, *, whole: bool = False) -> list[list[Piece]]:
    """Pieces of documents in bins of `size` ids, by best fit in descending order.

    `room` has a bit for each number of free ids that some bin has, so that the fullest bin with
    room enough is found by looking for its lowest bit.
    """
    bins: list[list[Piece]] = []
    free: dict[int, list[list[Piece]]] = defaultdict(list)
    short: list[Piece] = []
    room, start = 0, 0
    for end in ends:
        document, start = Piece(start, end), end
        if document.size <= size:
            short += [document] if document.size else []
            continue
        for first in () if whole else range(document.start, end, size):
            piece = Piece(first, min(first + size, end))
            bins.append([piece])
            if piece.size < size:
                free[size - piece.size].append(bins[-1])
                room |= 1 << (size - piece.size)
    for piece in sorted(short, key=lambda piece: -piece.size):
        fitting = room >> piece.size
        if fitting:
            left = piece.size + (fitting & -fitting).bit_length() - 1
            chosen = free[left].pop()
            room &= ~(0 if free[left] else 1 << left)
        else:
            left, chosen = size, []
            bins.append(chosen)
        chosen.append(piece)
        if left > piece.size:
            free[left - piece.size].append(chosen)
            room |= 1 << (left - piece.size)
    return bins


class Group:
    """Blocks from portions of several lanes, each lane a stream of its own.

    Args:
        groupers: by lane.
    """

    def __init__(self, groupers: dict[str, Grouper]) -> None:
        self.groupers = groupers

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Add the blocks [B, T+1] that a portion of ids completes.

        Args:
            batch: a row with "lane", "input_ids" [N] and "ends" [documents].
        """
        grouper = self.groupers[batch["lane"]]
        return {"blocks": grouper.add(batch["input_ids"], batch["ends"])}
