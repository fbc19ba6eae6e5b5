"""Measure seconds and tokens per second, without evaluations and checkpoints."""

from __future__ import annotations

import time


class ThroughputMeter:
    """Monotonic seconds since the first step, and those of them spent training."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.before = seconds
        self.start: float | None = None
        self.paused = 0.0
        self.mark: tuple[float, int] | None = None

    def begin(self, tokens: int) -> None:
        """Start at the first step."""
        self.start = time.monotonic()
        self.mark = (0.0, tokens)

    @property
    def seconds(self) -> float:
        """Seconds since the run's first step, earlier parts included."""
        return self.before + (0.0 if self.start is None else time.monotonic() - self.start)

    def tokens_per_second(self, tokens: int) -> float | None:
        """Tokens a second since the last call, evaluations and checkpoints left out."""
        if self.start is None or self.mark is None:
            return None
        trained = time.monotonic() - self.start - self.paused
        (then, seen), self.mark = self.mark, (trained, tokens)
        return (tokens - seen) / (trained - then) if trained > then and tokens > seen else None
