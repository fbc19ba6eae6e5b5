"""A number of steps, or a share of all of them, in; steps out."""

from __future__ import annotations


def count_steps(steps: float, total: int) -> int:
    """Optimizer steps, of `total`: a share comes to one at least, and 0 stays 0."""
    return int(steps) if steps >= 1 or steps == 0 else max(1, round(steps * total))
