"""The row format of blocks, and the memory-mapped dataset that reads them."""

# Shapes: B blocks, T tokens predicted in a block (`block_size`).

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from datasets import Dataset
from torch.utils.data import Dataset as TorchDataset

from hf_lm.data.mixture import MixtureOrder

COUNTS = "counts.json"
BYTES = "validation-bytes.npy"  # if they do not follow from the ids

# Flags in the highest bits of an id: it is in the loss, and a conversation starts with it.
LOSS_BIT, START_BIT = 1 << 29, 1 << 30
IDS = LOSS_BIT - 1  # mask of the bits below the flags: the id itself

NO_BLOCK = -1  # the index of a row that is not in the loss: a process has no block of a step


@dataclass(frozen=True)
class SplitCounts:
    """Documents, bytes, tokens and blocks of one split."""

    documents: int = 0
    bytes: int = 0
    tokens: int = 0  # end-of-text tokens included
    blocks: int = 0
    unused_tokens: int = 0  # tokens at the end of the text that do not fill a block
    padded_tokens: int = 0  # padding ids added to fill blocks
    completion_tokens: int = 0  # tokens in the loss with train_on = "completion", otherwise 0

    def scaled(self, factor: float) -> SplitCounts:
        """Estimate the counts of a text that is `factor` times as long."""
        return self if factor == 1 else SplitCounts(*(round(v * factor) for v in astuple(self)))

    def __add__(self, other: SplitCounts) -> SplitCounts:
        return SplitCounts(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


class Blocks(NamedTuple):
    """The blocks that the trainer and the evaluation read.

    Attributes:
        splits: "train" and "validation"; each row has "input_ids" [T+1].
        counts: counts of each split whose text was read completely.
        order: the order of the training blocks of a mixture; None means any random order.
    """

    splits: Mapping[str, Any]
    counts: Mapping[str, SplitCounts]
    order: MixtureOrder | None = None

    def provenance(self) -> dict[str, object]:
        """Return the counts in the form that provenance.json stores."""
        return {"text": {split: asdict(counts) for split, counts in self.counts.items()}}


class BlockDataset(TorchDataset):
    """A dataset of rows of T+1 ids, which reads Arrow memory without copying or converting it.

    A `datasets.Dataset` formats every batch and reads 8 to 10 M tokens per second for rows of 256;
    this class reads 60 M. The attribute `dataset` is the `datasets.Dataset`.

    Args:
        dataset: has the fixed-size list column "input_ids".
        block_bytes: [B], the bytes of text that each block predicts; rows have them as "bytes".
    """

    def __init__(self, dataset: Dataset, block_bytes: np.ndarray | None = None) -> None:
        self.dataset, self.block_bytes = dataset, block_bytes
        chunks = dataset.data.column("input_ids").chunks
        self.chunks = [c.flatten().to_numpy().reshape(-1, c.type.list_size) for c in chunks]
        self.starts = [0, *accumulate(len(chunk) for chunk in self.chunks)]

    @property
    def block_size(self) -> int:
        """T, the tokens predicted in a block."""
        return self.chunks[0].shape[1] - 1

    def __reduce__(self) -> tuple[type[BlockDataset], tuple[Dataset, np.ndarray | None]]:
        """Open the files again in another process; the arrays would be copied with all tokens."""
        return BlockDataset, (self.dataset, self.block_bytes)

    def __len__(self) -> int:
        return self.starts[-1]

    def ids(self, index: int) -> np.ndarray:
        """Return the ids [T+1] of a block."""
        chunk = bisect_right(self.starts, index) - 1
        return self.chunks[chunk][index - self.starts[chunk]]

    def arrays(self, first: int, stop: int) -> Iterator[np.ndarray]:
        """Yield the ids [B, T+1] of the blocks from `first` to `stop`, without copying them."""
        for start, chunk in zip(self.starts, self.chunks, strict=False):
            yield chunk[max(first - start, 0) : max(stop - start, 0)]

    def __getitem__(self, index: int) -> dict[str, object]:
        return self.__getitems__([range(len(self))[index]])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, object]]:
        """Return the rows of a batch; a DataLoader calls this once per batch.

        Indices count on from epoch to epoch; every epoch has the same rows. The row of NO_BLOCK has
        the ids of block 0 and the number NO_BLOCK.
        """
        if indices[0] == NO_BLOCK:
            return [{**self[0], "number": NO_BLOCK}]
        indices = [index % len(self) for index in indices]
        rows: list[dict[str, object]] = [
            {"input_ids": self.ids(index), "number": index} for index in indices
        ]
        if self.block_bytes is not None:
            for row, index in zip(rows, indices, strict=True):
                row["bytes"] = int(self.block_bytes[index])
        return rows


def table_of(blocks: np.ndarray) -> pa.Table:
    """Convert blocks [B, T+1] to an Arrow table with a fixed-size list column "input_ids"."""
    values = pa.array(np.ascontiguousarray(blocks).reshape(-1))
    return pa.table({"input_ids": pa.FixedSizeListArray.from_arrays(values, blocks.shape[1])})
