"""Cut the training text into new blocks in every epoch, with its documents in a new order.

Blocks that stay the same are learnt by heart: the same tokens always follow each other, and the
tokens at the beginning of a block never see what is before them. benchmarks/README.md has the
losses with and without. The first epoch has the stored blocks, and nothing is written to disk:
rows overlap by one id, so the rows of a source are its text.
"""

# Shapes: B blocks of a source, D documents, T tokens predicted in a block (`block_size`).

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property, partial
from itertools import accumulate
from typing import NamedTuple

import numpy as np
from torch.utils.data import Dataset as TorchDataset

from hf_lm.data.blocks.dataset import NO_BLOCK, BlockDataset

CUTS = 1  # in the seed: MixtureOrder draws from the seed of a source and a pass, too


class DocumentOrder(NamedTuple):
    """The order of the documents in one pass over a source.

    Attributes:
        number: the number of the pass.
        stops: [D], where each document ends in the stored text, in the new order.
        ends: [D], where each ends in the new order.
        shift: where the first block of the pass begins in the new order.
    """

    number: int
    stops: np.ndarray
    ends: np.ndarray
    shift: int


class SourceText:
    """The text of one source, which every pass reads in another order of its documents.

    The text is a circle: the block that reaches its end goes on at its beginning, so that a pass
    has as many blocks as are stored and predicts each token once.

    Args:
        blocks: the stored blocks of all sources.
        first: the index of the first block of this source.
        count: B, the blocks of this source.
        eos: the id that ends a document; None takes the text for one document.
        seed: seeds the order of the documents, together with the number of the pass.
    """

    def __init__(
        self, blocks: BlockDataset, first: int, count: int, *, eos: int | None, seed: Sequence[int]
    ) -> None:
        self.blocks, self.first, self.count = blocks, first, count
        self.eos, self.seed = eos, seed
        self.block_size = blocks.block_size
        self.length = count * self.block_size + 1  # ids
        self.last_order: DocumentOrder | None = None

    @cached_property
    def document_ends(self) -> np.ndarray:
        """The end of each document [D] in the stored text, which is searched for `eos` once."""
        chunk_ends, start = [], 0
        for rows in self.blocks.arrays(self.first, self.first + self.count):
            if self.eos is not None:
                chunk_ends.append(np.flatnonzero(rows[:, :-1] == self.eos) + start + 1)
            start += len(rows) * self.block_size
        return np.concatenate([*chunk_ends, [self.length]]).astype(np.int64)

    def order_of(self, number: int) -> DocumentOrder:
        """Return the order of the documents in a pass; the last one is kept."""
        if self.last_order is None or self.last_order.number != number:
            random = np.random.default_rng([*self.seed, number])
            stops = self.document_ends
            order = random.permutation(len(stops))
            ends = np.cumsum(np.diff(stops, prepend=0)[order])
            shift = int(random.integers(self.length))
            self.last_order = DocumentOrder(number, stops[order], ends, shift)
        return self.last_order

    def block(self, number: int, index: int) -> np.ndarray:
        """Return block `index` of a pass [T+1]."""
        order = self.order_of(number)
        position = (order.shift + index * self.block_size) % self.length
        document = int(np.searchsorted(order.ends, position, side="right"))
        pieces, missing = list[np.ndarray](), self.block_size + 1
        while missing:
            rest = int(order.ends[document]) - position  # ids of this document
            size = min(rest, missing)
            pieces += self.stored(int(order.stops[document]) - rest, size)
            position, missing, document = position + size, missing - size, document + 1
            if document == len(order.ends):
                position, document = 0, 0
        return np.concatenate(pieces)

    def stored(self, start: int, size: int) -> list[np.ndarray]:
        """Return `size` ids of the stored text from `start` on, in pieces."""
        pieces = list[np.ndarray]()
        while size:
            row = min(start // self.block_size, self.count - 1)  # the last id ends the last row
            column = start - row * self.block_size
            pieces.append(self.blocks.ids(self.first + row)[column : column + size])
            start, size = start + len(pieces[-1]), size - len(pieces[-1])
        return pieces


class FreshBlocks(TorchDataset):
    """The training blocks of all epochs: pass 0 has the stored blocks, each later one its own.

    Args:
        blocks: the stored blocks, one source after the other.
        sizes: the blocks of each source.
        eos: the id that ends a document; None if nothing does.
        seed: seeds the order of the documents.
    """

    def __init__(
        self, blocks: BlockDataset, sizes: Sequence[int], *, eos: int | None, seed: int
    ) -> None:
        self.blocks, self.sizes, self.eos, self.seed = blocks, sizes, eos, seed
        self.starts = [0, *accumulate(sizes)]
        self.texts = [
            SourceText(blocks, start, size, eos=eos, seed=(seed, source, CUTS))
            for source, (start, size) in enumerate(zip(self.starts, sizes, strict=False))
        ]

    def __reduce__(self) -> tuple[object, ...]:
        """Open the files again in another process; the arrays would be copied with all tokens."""
        return partial(FreshBlocks, eos=self.eos, seed=self.seed), (self.blocks, self.sizes)

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> dict[str, object]:
        return self.blocks[index]

    def __getitems__(self, numbers: Sequence[int]) -> list[dict[str, object]]:
        """Return the rows of a batch, for numbers that count on from pass to pass."""
        if numbers[0] == NO_BLOCK:
            return self.blocks.__getitems__(numbers)
        rows = list[dict[str, object]]()
        for number in numbers:
            number_of_pass, index = divmod(number, len(self))
            source = bisect_right(self.starts, index) - 1
            if number_of_pass == 0:
                ids = self.blocks.ids(index)
            else:
                ids = self.texts[source].block(number_of_pass, index - self.starts[source])
            rows.append({"input_ids": ids, "number": index})
        return rows
