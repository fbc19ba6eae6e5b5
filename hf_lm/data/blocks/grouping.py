"""Group token ids into blocks, by concatenating documents or by packing them with best fit.

The first `block_size` ids of a row predict its last `block_size`, so every token is predicted
exactly once.
  concat    Documents are joined end to end; rows overlap by one id, and nothing is padded. The
            price: a block may span documents (`document_mask` hides one from the other).
  best_fit  Documents are packed so that none that fits a block is cut (Ding et al., 2024,
            arXiv:2404.10830). The price: about 1 % of the ids is padding, which is not in the loss.
"""

# Shapes: B blocks, T tokens predicted in a block (`block_size`), N tokens.

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypedDict

import numpy as np

# Tokens packed together: enough to leave little padding, and few enough that a resumed stream,
# which tokenizes them again, starts quickly.
PACKED = 2**21


class Grouper(Protocol):
    """A buffer that takes the ids of one subset of the text and returns complete blocks.

    Attributes:
        tail: ids that start the next block; a resumed stream restores them.
        padded: padding ids added so far.
    """

    tail: np.ndarray
    padded: int

    @property
    def at_boundary(self) -> bool:
        """True if only the tail waits for more text."""

    @property
    def unused(self) -> int:
        """Number of ids that would not be in any block if the text ended here."""

    def add(self, ids: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Add documents and return the blocks [B, T+1] that they complete.

        Args:
            ids: ids [N] of documents, end to end.
            ends: the end [documents] of each in `ids`; empty at the end of the text, when the
                waiting documents are grouped too.
        """


def make_grouper(
    grouping: str,
    *,
    block_size: int,
    eos: int,
    dtype: type[np.generic],
    drop_long_documents: bool = False,
) -> Grouper:
    """Create the grouper that a recipe asks for.

    Args:
        grouping: "concat" or "best_fit".
        block_size: T.
        eos: end-of-text id, which best_fit pads with.
        dtype: integer type of an id.
        drop_long_documents: whether best_fit drops documents that are longer than a block.
    """
    if grouping == "best_fit":
        return BestFit(block_size, eos, dtype, drop_long_documents=drop_long_documents)
    return Concat(block_size, np.empty(0, dtype))


class Concat:
    """A grouper that joins all documents into one stream.

    Args:
        block_size: T.
        tail: the first ids of the stream; may be empty.
    """

    at_boundary = True

    def __init__(self, block_size: int, tail: np.ndarray) -> None:
        self.block_size, self.tail, self.padded = block_size, tail, 0

    @property
    def unused(self) -> int:
        """Size of the tail without its first id, which is the last id of the previous block."""
        return max(0, len(self.tail) - 1)

    def add(self, ids: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Add ids [N] and return the blocks [B, T+1] they complete; up to T ids wait."""
        stream = np.concatenate([self.tail, ids])
        rows = cut(stream, block_size=self.block_size)
        self.tail = stream[len(rows) * self.block_size :].copy()
        return rows


def cut(stream: np.ndarray, *, block_size: int) -> np.ndarray:
    """Cut a stream [N] into a view [B, T+1]; each row begins with the last id of the one before."""
    if len(stream) <= block_size:
        return np.empty((0, block_size + 1), stream.dtype)
    windows = np.lib.stride_tricks.sliding_window_view(stream, block_size + 1)
    return windows[::block_size]


class Piece(NamedTuple):
    """A range of neighbouring ids that go into the same block."""

    start: int
    end: int

    @property
    def size(self) -> int:
        """Number of ids."""
        return self.end - self.start


class BestFit:
    """A grouper that packs documents, the longest first, each into the fullest block with room.

    A block begins with an end-of-text id, which predicts the first token of its first document.
    A document that is longer than a block is cut into whole blocks, which overlap by one id. Its
    rest starts another block, after the id before it. With `drop_long_documents` such a document
    is not used at all.

    Args:
        block_size: T.
        eos: end-of-text id.
        dtype: integer type of an id.
        drop_long_documents: whether documents that are longer than a block are dropped.
    """

    def __init__(
        self,
        block_size: int,
        eos: int,
        dtype: type[np.generic],
        *,
        drop_long_documents: bool = False,
    ) -> None:
        self.block_size, self.eos = block_size, eos
        self.drop_long_documents = drop_long_documents
        self.padded, self.unused = 0, 0
        self.tail = np.empty(0, dtype)
        self.waiting: list[tuple[np.ndarray, np.ndarray]] = []
        self.num_waiting = 0  # ids

    @property
    def at_boundary(self) -> bool:
        """True if no document waits to be packed."""
        return not self.waiting

    def add(self, ids: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Add documents; return blocks [B, T+1] when PACKED ids wait or the text ends."""
        if len(ends):
            self.waiting.append((ids, ends))
            self.num_waiting += len(ids)
        if self.waiting and (self.num_waiting >= PACKED or not len(ends)):
            return self.pack()
        return np.empty((0, self.block_size + 1), self.tail.dtype)

    def pack(self) -> np.ndarray:
        """Pack all waiting documents into blocks [B, T+1]."""
        ids = np.concatenate([ids for ids, _ in self.waiting])
        offsets = np.cumsum([0, *(len(ids) for ids, _ in self.waiting)])
        ends = [
            end
            for (_, batch_ends), offset in zip(self.waiting, offsets, strict=False)
            for end in (batch_ends + offset).tolist()
        ]
        self.waiting, self.num_waiting = [], 0
        bins = fill_bins(ends, self.block_size, drop_long_documents=self.drop_long_documents)
        self.unused += len(ids) - sum(piece.size for pieces in bins for piece in pieces)
        rows = np.full((len(bins), self.block_size + 1), self.eos, self.tail.dtype)
        document_starts = {0, *ends}
        for row, pieces in zip(rows, bins, strict=True):
            first = pieces[0].start
            row[0] = self.eos if first in document_starts else ids[first - 1]
            filled = 1
            for piece in pieces:
                row[filled : filled + piece.size] = ids[piece.start : piece.end]
                filled += piece.size
            self.padded += len(row) - filled
        return rows


def fill_bins(
    ends: Sequence[int], size: int, *, drop_long_documents: bool = False
) -> list[list[Piece]]:
    """Distribute documents over bins of `size` ids, by best fit in descending order of size.

    Args:
        ends: the end of each document in the ids.
        size: ids per bin.
        drop_long_documents: whether documents longer than a bin are dropped; otherwise they are
            cut.

    Returns:
        The pieces in each bin.
    """
    bins: list[list[Piece]] = []
    bins_by_room: dict[int, list[list[Piece]]] = defaultdict(list)
    short_documents: list[Piece] = []
    # Bit n of `rooms` is set if a bin has n free ids. The lowest bit at or above the size of a
    # piece is then the fullest bin that has room for it.
    rooms, start = 0, 0
    for end in ends:
        document, start = Piece(start, end), end
        if document.size <= size:
            short_documents += [document] if document.size else []
            continue
        for first in () if drop_long_documents else range(document.start, end, size):
            piece = Piece(first, min(first + size, end))
            bins.append([piece])
            if piece.size < size:
                bins_by_room[size - piece.size].append(bins[-1])
                rooms |= 1 << (size - piece.size)
    for piece in sorted(short_documents, key=lambda piece: -piece.size):
        fitting = rooms >> piece.size
        if fitting:
            room = piece.size + (fitting & -fitting).bit_length() - 1
            chosen = bins_by_room[room].pop()
            rooms &= ~(0 if bins_by_room[room] else 1 << room)
        else:
            room, chosen = size, []
            bins.append(chosen)
        chosen.append(piece)
        if room > piece.size:
            bins_by_room[room - piece.size].append(chosen)
            rooms |= 1 << (room - piece.size)
    return bins


class TokenBatch(TypedDict):
    """The ids [N] of some documents of one subset, and the end of each document."""

    subset: str
    input_ids: np.ndarray
    ends: np.ndarray


class Group:
    """The second map step: add a batch of ids to the grouper of its subset.

    Args:
        groupers: by the name of the subset.
    """

    def __init__(self, groupers: dict[str, Grouper]) -> None:
        self.groupers = groupers

    def __call__(self, batch: TokenBatch) -> dict[str, np.ndarray]:
        """Return the "blocks" [B, T+1] that a batch of ids completes."""
        grouper = self.groupers[batch["subset"]]
        return {"blocks": grouper.add(batch["input_ids"], batch["ends"])}
