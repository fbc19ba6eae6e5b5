"""Read an iterator ahead in a background thread."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def read_ahead(items: Iterator[T], *, taken: int, ahead: int) -> Generator[T, None, None]:
    """The same items, read before they are asked for; what it raises is raised here.

    Args:
        items: to read.
        taken: items read at once.
        ahead: how often that is done before they are asked for.
    """

    def take() -> list[T]:
        """The next few items."""
        return list(itertools.islice(items, taken))

    pool = ThreadPoolExecutor(1)
    try:
        waiting = deque(pool.submit(take) for _ in range(ahead))
        while found := waiting.popleft().result():
            waiting.append(pool.submit(take))
            yield from found
    finally:
        pool.shutdown(cancel_futures=True)
