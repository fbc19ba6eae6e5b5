"""Open the blocks that build.py wrote, and check that there are any."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from datasets import Dataset, concatenate_datasets

from hf_lm.data.blocks.dataset import BYTES, COUNTS, BlockDataset, Blocks, SplitCounts
from hf_lm.data.blocks.fresh import FreshBlocks
from hf_lm.data.mixture import MixtureOrder
from hf_lm.errors import DataError
from hf_lm.recipe import DataRecipe


def open_blocks(
    folder: Path, weights: Sequence[float], data: DataRecipe, *, eos: int | None, seed: int
) -> Blocks:
    """Open the blocks in a folder as memory maps.

    Args:
        folder: a folder that `build_blocks` wrote.
        weights: the share of the training tokens of each source.
        data: the recipe section.
        eos: the end-of-text id of the tokenizer.
        seed: seeds the order of a mixture, and that of documents in later epochs.

    Returns:
        The blocks of both splits, their counts, and the order of a mixture.

    Raises:
        DataError: a split, or a source of a mixture, does not fill one block.
    """
    written_counts = json.loads((folder / COUNTS).read_text(encoding="utf-8"))
    counts = {split: SplitCounts(**row) for split, row in written_counts.items()}
    require_blocks(counts, data)
    is_mixture = len(weights) > 1
    names = [f"train-{n}" for n in range(len(weights))] if is_mixture else ["train"]
    sources = [Dataset.from_file(str(folder / f"{name}.arrow")) for name in names]
    order = None
    empty_sources = [n for n, source in enumerate(sources) if not len(source)]
    if empty_sources:
        raise DataError(
            f"data.source.{empty_sources[0]}: fills no block of its own; add text or remove all "
            "weights"
        )
    sizes = [len(source) for source in sources]
    if is_mixture:
        order = MixtureOrder(sizes, weights, seed=seed)
    train = BlockDataset(concatenate_datasets(sources))
    splits = {
        "train": FreshBlocks(train, sizes, eos=eos, seed=seed) if is_fresh(data) else train,
        "validation": BlockDataset(
            Dataset.from_file(str(folder / "validation.arrow")),
            np.load(folder / BYTES) if (folder / BYTES).is_file() else None,
        ),
    }
    return Blocks(splits, counts, order)


def is_fresh(data: DataRecipe) -> bool:
    """Return whether the rows of the blocks overlap and are to be cut anew in every epoch."""
    return data.fresh_blocks and data.grouping == "concat" and data.train_on == "text"


def require_blocks(counts: Mapping[str, SplitCounts], data: DataRecipe) -> None:
    """Check that every split has at least one block.

    Raises:
        DataError: a split has no block; the message has one line per split.
    """
    problems = [
        too_short_message(split, row, data) for split, row in counts.items() if not row.blocks
    ]
    if problems:
        raise DataError(problems)


def too_short_message(split: str, row: SplitCounts, data: DataRecipe) -> str:
    """Explain why a split has no block, and which key to change."""
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
