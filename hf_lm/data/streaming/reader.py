"""Read streamed blocks resumably: every block knows its position.

A position is the number of a pass, the state of `datasets` in it, the ids that wait to be grouped
there, and a number of blocks after it. That is small enough for every checkpoint, and enough to
continue with the next block. Each reader prefetches in its own thread.
"""

# Shapes: B blocks, T tokens predicted in a block.

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from datasets import IterableDataset
from torch.utils.data import IterableDataset as TorchIterableDataset

from hf_lm.data.blocks.grouping import Grouper
from hf_lm.data.mixture import sources_of
from hf_lm.data.prefetch import prefetch
from hf_lm.errors import DataError, MismatchError

BATCH_SIZE, DEPTH = 64, 16  # blocks that a thread reads at once, and batches that it reads ahead

PLANNED = 1_024  # blocks whose source is computed at once


@dataclass(frozen=True)
class StreamPosition:
    """A position in a source at which only a few ids wait to be grouped.

    Attributes:
        number: the number of the pass.
        rows: the state of `datasets`; None is the start of the pass.
        tail: the ids that wait.
    """

    number: int = 0
    rows: dict[str, Any] | None = None
    tail: tuple[int, ...] = ()


class PositionedBlock(NamedTuple):
    """A block with its position.

    Attributes:
        block: [T+1] ids.
        source: the index of its source.
        position: the last position before it.
        offset: the number of blocks from that position to the end of this one.
    """

    block: np.ndarray
    source: int
    position: StreamPosition
    offset: int


class SourceReader:
    """Reads the blocks of a reader's share of a source, pass after pass, from any position.

    Args:
        open_pass: opens a pass, by its number, as rows of token ids.
        make_grouper: makes a grouper that starts with waiting ids.
    """

    def __init__(
        self,
        open_pass: Callable[[int], IterableDataset],
        make_grouper: Callable[[Sequence[int]], Grouper],
    ) -> None:
        self.open_pass, self.make_grouper = open_pass, make_grouper

    def read(self, position: StreamPosition, offset: int, source: int) -> Iterator[PositionedBlock]:
        """Yield the blocks after a position and an offset, each with its own position."""
        for start, blocks in self.sections(position):
            for index in range(offset, len(blocks)):
                yield PositionedBlock(blocks[index], source, start, index + 1)
            offset = max(0, offset - len(blocks))

    def sections(self, position: StreamPosition) -> Iterator[tuple[StreamPosition, np.ndarray]]:
        """Yield each position with the blocks [B, T+1] up to the next position."""
        while True:
            rows = self.open_pass(position.number)
            grouper = self.make_grouper(position.tail)
            if position.rows is not None:
                rows.load_state_dict(position.rows)
            has_blocks = position.rows is not None
            for row in rows:
                blocks = grouper.add(row["input_ids"], row["ends"])
                has_blocks = has_blocks or len(blocks) > 0
                if grouper.at_boundary:
                    yield position, blocks
                    state = rows.state_dict()
                    position = StreamPosition(position.number, state, waiting_ids(grouper))
            rest = grouper.add(np.empty(0, grouper.tail.dtype), np.empty(0, np.int64))
            if not has_blocks and not len(rest):
                raise DataError("a pass over the stream fills no block; lower data.block_size")
            yield position, rest
            position = StreamPosition(position.number + 1, None, waiting_ids(grouper))


def waiting_ids(grouper: Grouper) -> tuple[int, ...]:
    """Return the ids that wait for more text."""
    return tuple(grouper.tail.tolist())


class StreamReader:
    """A reader of a process, which yields blocks of all sources, mixed by weight.

    Args:
        sources: the reader's share of each source.
        weights: the weights of the sources; their sum is 1.
        seed: the seed of the mixture.
        number: the number of this reader; readers take blocks in turn.
        readers: the number of readers of all processes.
    """

    def __init__(
        self,
        sources: Sequence[SourceReader],
        weights: Sequence[float],
        *,
        seed: int,
        number: int,
        readers: int,
    ) -> None:
        self.sources, self.weights, self.seed = sources, weights, seed
        self.number, self.readers = number, readers
        self.positions = [(StreamPosition(), 0) for _ in sources]
        self.count = 0

    def __iter__(self) -> Iterator[PositionedBlock]:
        streams = [
            source.read(*position, index)
            for index, (source, position) in enumerate(
                zip(self.sources, self.positions, strict=True)
            )
        ]
        for start in itertools.count(self.count, PLANNED):
            blocks = np.arange(start, start + PLANNED) * self.readers + self.number
            for source in sources_of(blocks, self.weights, seed=self.seed):
                yield next(streams[source])

    def mark_consumed(self, block: PositionedBlock) -> None:
        """Note that a block was passed to the trainer."""
        self.positions[block.source] = (block.position, block.offset)
        self.count += 1

    def state_dict(self) -> dict[str, Any]:
        """Return the position after the last consumed block."""
        places = [{**vars(position), "offset": offset} for position, offset in self.positions]
        return {"count": self.count, "places": places}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a position."""
        self.count = state["count"]
        self.positions = [
            (StreamPosition(place["number"], place["rows"], tuple(place["tail"])), place["offset"])
            for place in state["places"]
        ]


class BlockStream(TorchIterableDataset):
    """An endless dataset of rows of T+1 ids; the readers of this process take turns."""

    def __init__(self, readers: Sequence[StreamReader]) -> None:
        self.readers, self.count = readers, 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        streams = [prefetch(iter(r), batch_size=BATCH_SIZE, depth=DEPTH) for r in self.readers]
        try:
            while True:
                turn = self.count % len(streams)
                block = next(streams[turn])
                self.readers[turn].mark_consumed(block)
                self.count += 1
                yield {"input_ids": block.block, "number": self.count - 1}
        finally:
            for stream in streams:
                stream.close()

    def state_dict(self) -> dict[str, Any]:
        """Return the position after the last block, as values that JSON can hold."""
        return {"count": self.count, "readers": [r.state_dict() for r in self.readers]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the position at which `state_dict` was called.

        Raises:
            MismatchError: the number of readers changed, which divide the stream differently.
        """
        before, now = len(state["readers"]), len(self.readers)
        if before != now:
            raise MismatchError(
                f"training.dataloader_num_workers: the stream was read by {before} threads, is now "
                f"read by {now}; set it back to {before}, or start over with --fresh"
            )
        self.count = state["count"]
        for reader, reader_state in zip(self.readers, state["readers"], strict=True):
            reader.load_state_dict(reader_state)
