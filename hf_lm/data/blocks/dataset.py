"""The row format of blocks, and the memory-mapped dataset that reads it."""

# Shapes: B blocks, T tokens predicted in a block (`block_size`).

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from datasets import Dataset, concatenate_datasets
from torch.utils.data import Dataset as TorchDataset

from hf_lm.data.mixture import MixtureSampler
from hf_lm.errors import DataError
from hf_lm.recipe import DataRecipe

COUNTS = "counts.json"


@dataclass(frozen=True)
class SplitCounts:
    """What became of the text of one part."""

    documents: int = 0
    bytes: int = 0
    tokens: int = 0  # end-of-text tokens included
    blocks: int = 0
    unused_tokens: int = 0  # the tail that fills no block
    padded_tokens: int = 0  # ids that fill blocks up
    completion_tokens: int = 0  # of those in blocks, the learnt ones, where not all are

    def scaled(self, factor: float) -> SplitCounts:
        """The same for a text `factor` times as long."""
        return self if factor == 1 else SplitCounts(*(round(v * factor) for v in astuple(self)))

    def __add__(self, other: SplitCounts) -> SplitCounts:
        return SplitCounts(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


class Blocks(NamedTuple):
    """What the trainer and the evaluation are given.

    Attributes:
        splits: "train" and "validation", rows of T+1 ids.
        counts: what became of the text of each part, where it is known.
        sampler: the order of a mixture; None is any random order.
    """

    splits: Mapping[str, Any]
    counts: Mapping[str, SplitCounts]
    sampler: MixtureSampler | None = None

    def facts(self) -> dict[str, Any]:
        """The counts as a run records them."""
        return {"text": {split: asdict(counts) for split, counts in self.counts.items()}}


class BlockDataset(TorchDataset):
    """Rows of T+1 ids, read from Arrow without copying or converting more than is asked for.

    A `datasets.Dataset` formats every batch, at 8 to 10 M tokens a second for rows of 256; this
    gives 60. Whoever wants one takes `dataset`.

    Args:
        dataset: with the fixed-size list column "input_ids".
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        chunks = dataset.data.column("input_ids").chunks
        self.chunks = [c.flatten().to_numpy().reshape(-1, c.type.list_size) for c in chunks]
        self.starts = [0, *accumulate(len(chunk) for chunk in self.chunks)]

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([range(len(self))[index]])[0]

    def __getitems__(self, places: Sequence[int]) -> list[dict[str, Any]]:
        """The rows at some places; what a DataLoader asks for."""
        starts, chunks = self.starts, self.chunks
        found = ((place, bisect_right(starts, place) - 1) for place in places)
        return [
            {"input_ids": chunks[chunk][place - starts[chunk]], "number": place}
            for place, chunk in found
        ]


def table_of(blocks: np.ndarray) -> pa.Table:
    """Blocks [B, T+1] as an Arrow table with fixed-size lists."""
    values = pa.array(np.ascontiguousarray(blocks).reshape(-1))
    return pa.table({"input_ids": pa.FixedSizeListArray.from_arrays(values, blocks.shape[1])})


def open_blocks(folder: Path, weights: Sequence[float], data: DataRecipe, *, seed: int) -> Blocks:
    """The blocks of a prepared folder, memory-mapped.

    Args:
        folder: as `build_blocks` fills it.
        weights: the share of the training tokens that each source has.
        data: for the remedy of what is too short.
        seed: of the order of a mixture.

    Raises:
        DataError: a part is shorter than one block.
    """
    written = json.loads((folder / COUNTS).read_text())
    counts = {split: SplitCounts(**row) for split, row in written.items()}
    require_blocks(counts, data)
    mixed = len(weights) > 1
    names = [f"train-{n}" for n in range(len(weights))] if mixed else ["train"]
    sources = [Dataset.from_file(str(folder / f"{name}.arrow")) for name in names]
    sampler = None
    short = [n for n, source in enumerate(sources) if not len(source)]
    if short:
        raise DataError(
            f"data.source.{short[0]}: fills no block of its own; add text or remove all weights"
        )
    if mixed:
        sampler = MixtureSampler([len(source) for source in sources], weights, seed=seed)
    splits = {
        "train": BlockDataset(concatenate_datasets(sources)),
        "validation": BlockDataset(Dataset.from_file(str(folder / "validation.arrow"))),
    }
    return Blocks(splits, counts, sampler)


def require_blocks(counts: Mapping[str, SplitCounts], data: DataRecipe) -> None:
    """Refuse a part that fills no block."""
    problems = [too_short(split, row, data) for split, row in counts.items() if not row.blocks]
    if problems:
        raise DataError(problems)


def too_short(split: str, row: SplitCounts, data: DataRecipe) -> str:
    """Why a part fills no block, and what to do."""
    if data.train_on == "completion":
        return (
            f"{split} text: none of {row.documents:,} conversations fits a block of "
            f"{data.block_size:,} tokens; raise data.block_size"
        )
    more = ", raise data.validation.holdout" if split == "validation" else ""
    return (
        f"{split} text: {row.tokens:,} tokens, one block needs {data.block_size + 1:,}; add text"
        f"{more} or lower data.block_size"
    )


LOSS_BIT, START_BIT = 1 << 29, 1 << 30


IDS = LOSS_BIT - 1  # the bits of the id itself
