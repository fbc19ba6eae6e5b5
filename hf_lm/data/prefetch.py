"""Read an iterator ahead in a background thread."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def prefetch(items: Iterator[T], *, batch_size: int, depth: int) -> Generator[T, None, None]:
    """Yield the items of an iterator, read ahead in a thread; its errors are raised here.

    Args:
        items: the iterator.
        batch_size: the items that are read at once.
        depth: the batches that are read ahead.
    """

    def read_batch() -> list[T]:
        """Read the next items."""
        return list(itertools.islice(items, batch_size))

    pool = ThreadPoolExecutor(1)
    try:
        waiting = deque(pool.submit(read_batch) for _ in range(depth))
        while batch := waiting.popleft().result():
            waiting.append(pool.submit(read_batch))
            yield from batch
    finally:
        pool.shutdown(cancel_futures=True)
