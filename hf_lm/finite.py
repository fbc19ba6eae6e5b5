"""The norm of a gradient in; if it is not finite, a step that changes nothing and the news out.

A GPU keeps the weights as they are by itself, by the mark that a GradScaler would set on its
optimizer, and is asked one step later: asked at once, it would have to wait for this process.
"""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

import torch


class Step(NamedTuple):
    """A step that was looked at; `broken` is on the host once `copied` has happened."""

    number: int
    rate: float
    broken: torch.Tensor
    copied: torch.cuda.Event | None


class FiniteGuard:
    """Looks at every step, without making a device wait.

    Args:
        lag: steps after which a step is asked about; without, the caller has to raise before the
            optimizer's step, and with it the optimizer is told to leave a broken step out.
    """

    def __init__(self, lag: int) -> None:
        self.lag, self.waiting = lag, deque[Step]()

    def watch(self, values: torch.Tensor, *, number: int, rate: float, optimizer: Any) -> None:
        """Look at values of a step that stand for all of it, such as the norm of its gradient."""
        broken = ~torch.isfinite(values).all()
        if self.lag:  # of fused optimizers of torch, and of Muon
            optimizer.found_inf = broken.float()
        host, copied = broken.to("cpu", non_blocking=True), None
        if broken.is_cuda:
            copied = torch.cuda.Event()
            copied.record()
        self.waiting.append(Step(number, rate, host, copied))

    def broken(self, *, lag: int = 0) -> Step | None:
        """The first step that was not finite, the last `lag` ones left for later."""
        while len(self.waiting) > lag:
            step = self.waiting.popleft()
            if step.copied is not None:
                step.copied.synchronize()
            if step.broken:
                return step
        return None
