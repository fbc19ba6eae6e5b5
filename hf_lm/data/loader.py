"""Load the training blocks of one process: the order of an epoch, and its share of every step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from hf_lm.data.blocks.dataset import NO_BLOCK


class Order(Protocol):
    """The order in which the blocks of a training set are read."""

    def __len__(self) -> int:
        """Return the number of blocks of an epoch."""
        ...

    def of_epoch(self, epoch: int) -> np.ndarray:
        """Return the numbers of the blocks of an epoch, in order.

        They count on from one pass over the text to the next: block `index` of pass `n` has the
        number n · len(self) + index.
        """
        ...


class RandomOrder:
    """A new permutation for each epoch, the same on every process.

    It is the one of accelerate's SeedableRandomSampler, so that older checkpoints continue.

    Args:
        length: the number of blocks.
        seed: the seed of the first epoch; each further epoch has the next one.
    """

    def __init__(self, length: int, *, seed: int) -> None:
        self.length, self.seed = length, seed

    def __len__(self) -> int:
        return self.length

    def of_epoch(self, epoch: int) -> np.ndarray:
        """Return the numbers of the blocks of an epoch, in order."""
        generator = torch.Generator().manual_seed(self.seed + epoch)
        return torch.randperm(self.length, generator=generator).numpy() + epoch * self.length


class ShareSampler(Sampler[list[int]]):
    """A batch sampler that gives a process its share of every micro-batch.

    Any number of processes trains on the same blocks in a step. At the end of an epoch, the blocks
    that are left are divided evenly; a process without any gets NO_BLOCK, because all processes
    have to make the same number of backward passes. accelerate would repeat blocks instead.

    Args:
        order: the order of the blocks.
        batch_size: blocks of a micro-batch on one process.
        rank: the rank of this process.
        world_size: the number of processes.
        epoch: the first epoch.
    """

    def __init__(
        self, order: Order, *, batch_size: int, rank: int, world_size: int, epoch: int = 0
    ) -> None:
        self.order, self.epoch = order, epoch
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size

    def __len__(self) -> int:
        return math.ceil(len(self.order) / (self.batch_size * self.world_size))

    def __iter__(self) -> Iterator[list[int]]:
        order, size = self.order.of_epoch(self.epoch), self.batch_size * self.world_size
        for start in range(0, len(order), size):
            share = np.array_split(order[start : start + size], self.world_size)[self.rank]
            yield share.tolist() or [NO_BLOCK]


class TrainingLoader(DataLoader):
    """A DataLoader of training blocks whose order follows the epoch.

    Args:
        dataset: the blocks.
        sampler: the share of this process.
        options: further arguments of DataLoader.
    """

    def __init__(self, dataset: Any, sampler: ShareSampler, **options: Any) -> None:
        super().__init__(dataset, batch_sampler=sampler, **options)
        self.share = sampler

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; the Trainer calls this before each one."""
        self.share.epoch = epoch
