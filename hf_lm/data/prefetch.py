"""Read an iterator ahead in a background thread."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def prefetch(items: Iterator[T], *, batch_size: int, depth: int) -> Generator[T, None, None]:
    """The same items, read before they are asked for; what it raises is raised here.

    Args:
        items: to read.
        batch_size: items read at once.
        depth: how often that is done before they are asked for.
    """

    def take() -> list[T]:
        """The next few items."""
        return list(itertools.islice(items, batch_size))

    pool = ThreadPoolExecutor(1)
    try:
        waiting = deque(pool.submit(take) for _ in range(depth))
        while found := waiting.popleft().result():
            waiting.append(pool.submit(take))
            yield from found
    finally:
        pool.shutdown(cancel_futures=True)
