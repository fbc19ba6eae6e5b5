"""Measure seconds and tokens per second; evaluations and checkpoints do not count."""

from __future__ import annotations

import time


class ThroughputMeter:
    """The seconds of a run and its tokens per second.

    Args:
        seconds: what earlier parts of the run took.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self.before = seconds
        self.start: float | None = None
        self.paused = 0.0  # seconds of evaluations and checkpoints since the start
        self.mark: tuple[float, int] | None = None  # seconds trained and tokens at the last call

    def begin(self, tokens: int) -> None:
        """Start at the first step, with the tokens of earlier parts of the run."""
        self.start = time.monotonic()
        self.mark = (0.0, tokens)

    @property
    def seconds(self) -> float:
        """Seconds of the run since its first step, earlier parts included."""
        return self.before + (0.0 if self.start is None else time.monotonic() - self.start)

    def tokens_per_second(self, tokens: int) -> float | None:
        """Return the tokens per second since the last call; None if there were none.

        Args:
            tokens: the tokens of the run so far.
        """
        if self.start is None or self.mark is None:
            return None
        trained = time.monotonic() - self.start - self.paused
        seconds, new_tokens = trained - self.mark[0], tokens - self.mark[1]
        self.mark = (trained, tokens)
        return new_tokens / seconds if seconds > 0 and new_tokens > 0 else None
