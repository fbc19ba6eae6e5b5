"""Choose which source of a weighted mixture each block comes from.

Block n of a run comes from the source on whose share of [0, 1) the number n·φ mod 1 falls. Such
points spread more evenly than random ones (Niederreiter, 1992, chapter 3), so that shares are right
from the first blocks on, and every process knows the source of every block by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

GOLDEN = 0x9E3779B97F4A7C15  # 2^64/φ, odd (Knuth, The Art of Computer Programming 3, section 6.4)


def sources_of(blocks: np.ndarray, weights: Sequence[float], *, seed: int) -> np.ndarray:
    """The source of each block [B], by its place n in the run.

    Args:
        blocks: places, counted over all processes.
        weights: shares of the sources, together 1.
        seed: shifts all points.
    """
    start = np.uint64(np.random.default_rng(seed).integers(2**64, dtype=np.uint64))
    with np.errstate(over="ignore"):
        points = (blocks.astype(np.uint64) * np.uint64(GOLDEN) + start) / 2.0**64
    bounds = np.cumsum(weights)[:-1]
    return np.searchsorted(bounds, points, side="right")


class MixtureSampler(Sampler[int]):
    """Block numbers of a mixture whose sources stand one behind the other.

    An epoch has as many blocks as all sources together. A source is read in a random order, to its
    end, before any of its blocks is read again, across epochs.

    Args:
        sizes: blocks of each source.
        weights: shares of the sources, together 1.
        seed: of the mixing and of the order of each pass.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], *, seed: int) -> None:
        self.sizes, self.weights, self.seed, self.epoch = sizes, weights, seed, 0

    def __len__(self) -> int:
        return sum(self.sizes)

    def set_epoch(self, epoch: int) -> None:
        """Go on behind the blocks of all epochs before this one."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        return iter(self.order().tolist())

    def order(self) -> np.ndarray:
        """The blocks of this epoch."""
        begin = self.epoch * len(self)
        chosen = sources_of(np.arange(begin + len(self)), self.weights, seed=self.seed)
        order = np.empty(len(self), np.int64)
        for source, size in enumerate(self.sizes):
            before = int((chosen[:begin] == source).sum())
            places = np.flatnonzero(chosen[begin:] == source)
            draws = np.arange(before, before + len(places))
            order[places] = sum(self.sizes[:source]) + self.drawn(source, size, draws)
        return order

    def drawn(self, source: int, size: int, draws: np.ndarray) -> np.ndarray:
        """The blocks of one source by the number of their draw."""
        found = np.empty(len(draws), np.int64)
        for number in np.unique(draws // size):
            shuffled = np.random.default_rng([self.seed, source, int(number)]).permutation(size)
            of_pass = draws // size == number
            found[of_pass] = shuffled[draws[of_pass] % size]
        return found
