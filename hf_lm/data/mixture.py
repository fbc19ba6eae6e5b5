"""Choose which source of a weighted mixture each block comes from.

The weights divide [0, 1) between the sources; block n of a run comes from the source whose part
contains n·φ mod 1. These points are more even than random ones (Niederreiter, 1992, chapter 3), so
the shares are right from the first blocks on, and every process can compute the source of a block.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

GOLDEN = 0x9E3779B97F4A7C15  # 2^64/φ, odd (Knuth, The Art of Computer Programming 3, section 6.4)


def sources_of(blocks: np.ndarray, weights: Sequence[float], *, seed: int) -> np.ndarray:
    """Return the source of each block [B].

    Args:
        blocks: [B], the numbers of blocks in the run, counted over all processes.
        weights: the weights of the sources; their sum is 1.
        seed: shifts all points.
    """
    start = np.uint64(np.random.default_rng(seed).integers(2**64, dtype=np.uint64))
    with np.errstate(over="ignore"):
        points = (blocks.astype(np.uint64) * np.uint64(GOLDEN) + start) / 2.0**64
    bounds = np.cumsum(weights)[:-1]
    return np.searchsorted(bounds, points, side="right")


class MixtureOrder:
    """The order of a mixture, for a dataset that holds the sources one after the other.

    An epoch has as many blocks as all sources together. All blocks of a source are read in a random
    order before any of them is read again, across epochs.

    Args:
        sizes: the blocks of each source.
        weights: the weights of the sources; their sum is 1.
        seed: the seed of the mixture and of the order of each pass.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], *, seed: int) -> None:
        self.sizes, self.weights, self.seed = sizes, weights, seed

    def __len__(self) -> int:
        return sum(self.sizes)

    def of_epoch(self, epoch: int) -> np.ndarray:
        """Return the numbers of the blocks of an epoch, in order.

        Block `index` of pass `n` over its source has the number n · len(self) + index.
        """
        begin = epoch * len(self)
        sources = sources_of(np.arange(begin + len(self)), self.weights, seed=self.seed)
        order = np.empty(len(self), np.int64)
        for source, size in enumerate(self.sizes):
            before = int((sources[:begin] == source).sum())
            indices = np.flatnonzero(sources[begin:] == source)
            draws = np.arange(before, before + len(indices))
            passes = draws // size
            blocks = sum(self.sizes[:source]) + self.draw(source, size, draws)
            order[indices] = passes * len(self) + blocks
        return order

    def draw(self, source: int, size: int, draws: np.ndarray) -> np.ndarray:
        """Return the blocks of a source for the numbers of its draws."""
        blocks = np.empty(len(draws), np.int64)
        for number in np.unique(draws // size):
            shuffled = np.random.default_rng([self.seed, source, int(number)]).permutation(size)
            in_pass = draws // size == number
            blocks[in_pass] = shuffled[draws[in_pass] % size]
        return blocks
