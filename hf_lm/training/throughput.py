"""Measure the seconds of training and its tokens per second.

There is one meaning of both, in log.jsonl, metrics.json and the card: the time of optimizer steps.
Evaluations, samples and checkpoints do not count.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class ThroughputMeter:
    """The seconds of a run and its tokens per second.

    Args:
        seconds: what earlier parts of the run took.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self.before = seconds
        self.start: float | None = None
        self.paused = 0.0  # seconds of evaluations and checkpoints since the start
        self.pause_start: float | None = None
        self.mark: tuple[float, int] | None = None  # seconds and tokens at the last call

    def begin(self, tokens: int) -> None:
        """Start at the first step, with the tokens of earlier parts of the run."""
        self.start = time.monotonic()
        self.mark = (self.before, tokens)

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Stop the clock during an evaluation or a checkpoint."""
        self.pause_start = time.monotonic()
        try:
            yield
        finally:
            if self.start is not None:  # a fine-tuned model is evaluated before the first step
                self.paused += time.monotonic() - self.pause_start
            self.pause_start = None

    @property
    def seconds(self) -> float:
        """Seconds of training since the first step of the run, earlier parts included."""
        if self.start is None:
            return self.before
        now = time.monotonic() if self.pause_start is None else self.pause_start
        return self.before + now - self.start - self.paused

    def tokens_per_second(self, tokens: int) -> float | None:
        """Return the tokens per second since the last call; None if there were none.

        Args:
            tokens: the tokens of the run so far.
        """
        if self.mark is None:
            return None
        now = self.seconds
        seconds, new_tokens = now - self.mark[0], tokens - self.mark[1]
        self.mark = (now, tokens)
        return new_tokens / seconds if seconds > 0 and new_tokens > 0 else None
