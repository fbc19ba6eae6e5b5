"""Read streamed blocks resumably: every block knows its position.

A place is a pass, where datasets stands in it, the ids that waited there, and a number of blocks
behind it: little enough to write down at every checkpoint, and enough to go on with the very next
block. Each reader reads ahead in a thread of its own.
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

TAKEN, AHEAD = 64, 16  # blocks a thread reads at once, and how often before they are asked for


PLANNED = 1_024  # blocks whose source is looked up at once


@dataclass(frozen=True)
class StreamPosition:
    """A place in a source where nothing but a few ids waits to be grouped."""

    number: int = 0  # of the pass
    rows: dict[str, Any] | None = None  # as datasets describes the place; None is the start
    tail: tuple[int, ...] = ()


class PositionedBlock(NamedTuple):
    """A block [T+1] with its place: `offset` blocks behind a mark of one of the sources."""

    block: np.ndarray
    source: int
    mark: StreamPosition
    offset: int


class SourceReader:
    """The blocks of one reader's share of a source, pass after pass, from any place on.

    Args:
        open_pass: number of a pass to rows of token ids.
        make_grouper: ids that wait to a grouper.
    """

    def __init__(
        self,
        open_pass: Callable[[int], IterableDataset],
        make_grouper: Callable[[Sequence[int]], Grouper],
    ) -> None:
        self.open_pass, self.make_grouper = open_pass, make_grouper

    def read(self, mark: StreamPosition, offset: int, source: int) -> Iterator[PositionedBlock]:
        """The blocks behind a place, each with its own place."""
        for start, blocks in self.stretches(mark):
            for place in range(offset, len(blocks)):
                yield PositionedBlock(blocks[place], source, start, place + 1)
            offset = max(0, offset - len(blocks))

    def stretches(self, mark: StreamPosition) -> Iterator[tuple[StreamPosition, np.ndarray]]:
        """Each mark with the blocks [B, T+1] up to the next one."""
        while True:
            rows, grouper = self.open_pass(mark.number), self.make_grouper(mark.tail)
            if mark.rows is not None:
                rows.load_state_dict(mark.rows)
            filled = mark.rows is not None
            for row in rows:
                blocks = grouper.add(row["input_ids"], row["ends"])
                filled = filled or len(blocks) > 0
                if grouper.at_boundary:
                    yield mark, blocks
                    mark = StreamPosition(mark.number, rows.state_dict(), ids_of(grouper))
            rest = grouper.add(np.empty(0, grouper.tail.dtype), np.empty(0, np.int64))
            if not filled and not len(rest):
                raise DataError("a pass over the stream fills no block; lower data.block_size")
            yield mark, rest
            mark = StreamPosition(mark.number + 1, None, ids_of(grouper))


def ids_of(grouper: Grouper) -> tuple[int, ...]:
    """The ids that wait for more text."""
    return tuple(grouper.tail.tolist())


class StreamReader:
    """One reader of a process: blocks of all sources, mixed by weight.

    Args:
        sources: its share of each.
        weights: of the sources, together 1.
        seed: of the mixing.
        number: of the reader among all processes' readers, who number the blocks in turn.
        readers: how many there are.
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
        self.places = [(StreamPosition(), 0) for _ in sources]
        self.count = 0

    def __iter__(self) -> Iterator[PositionedBlock]:
        feeds = [
            source.read(*place, number)
            for number, (source, place) in enumerate(zip(self.sources, self.places, strict=True))
        ]
        for start in itertools.count(self.count, PLANNED):
            blocks = np.arange(start, start + PLANNED) * self.readers + self.number
            for source in sources_of(blocks, self.weights, seed=self.seed):
                yield next(feeds[source])

    def mark_consumed(self, placed: PositionedBlock) -> None:
        """Take down that a block has been handed on."""
        self.places[placed.source] = (placed.mark, placed.offset)
        self.count += 1

    def state_dict(self) -> dict[str, Any]:
        """The place behind the last block handed on."""
        places = [{**vars(mark), "offset": offset} for mark, offset in self.places]
        return {"count": self.count, "places": places}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a place."""
        self.count = state["count"]
        self.places = [
            (StreamPosition(place["number"], place["rows"], tuple(place["tail"])), place["offset"])
            for place in state["places"]
        ]


class BlockStream(TorchIterableDataset):
    """Blocks of T+1 ids without an end: those of this process's readers in turn."""

    def __init__(self, readers: Sequence[StreamReader]) -> None:
        self.readers, self.count = readers, 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        feeds = [prefetch(iter(reader), batch_size=TAKEN, depth=AHEAD) for reader in self.readers]
        try:
            while True:
                turn = self.count % len(feeds)
                placed = next(feeds[turn])
                self.readers[turn].mark_consumed(placed)
                self.count += 1
                yield {"input_ids": placed.block, "number": self.count - 1}
        finally:
            for feed in feeds:
                feed.close()

    def state_dict(self) -> dict[str, Any]:
        """The place behind the last block, as JSON can hold it."""
        return {"count": self.count, "readers": [r.state_dict() for r in self.readers]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on behind the block where `state_dict` was called.

        Raises:
            MismatchError: there are more readers now, or fewer, who would share it in another way.
        """
        before, now = len(state["readers"]), len(self.readers)
        if before != now:
            raise MismatchError(
                f"training.dataloader_num_workers: the stream was read by {before} threads, is now "
                f"read by {now}; set it back to {before}, or start over with --fresh"
            )
        self.count = state["count"]
        for reader, place in zip(self.readers, state["readers"], strict=True):
            reader.load_state_dict(place)
