"""Keep steps with a non-finite or outlying loss away from the weights.

What is not finite never reaches the weights, and what leaps out may be kept from them. A GPU keeps
the weights as they are by itself, by the mark that a GradScaler would set on its optimizer, and is
asked one step later: asked at once, it would have to wait for this process.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import distributed

WINDOW = 128  # steps that a spike is judged by, as in OLMo-core's SkipStepOptimizer


APPLIED, EMPTY, SPIKE, NONFINITE = range(4)  # the highest of all processes holds for all


KINDS = ("taken", "empty", "spike", "nonfinite")


class Step(NamedTuple):
    """A step that was looked at; `seen` is on the host once `copied` has happened."""

    number: int
    rate: float
    blocks: Sequence[int]
    seen: torch.Tensor  # what became of it, and its loss
    copied: torch.cuda.Event | None

    @property
    def kind(self) -> int:
        """What became of it."""
        return int(self.seen[0])


class StepGuard:
    """Looks at every step, without making a device wait.

    Args:
        lag: steps after which a step is asked about.
        spike_threshold: standard deviations above the mean of the last steps at which a loss or
            a gradient norm is a spike; None looks for none.
    """

    def __init__(self, lag: int, *, spike_threshold: float | None = None) -> None:
        self.lag, self.spike_threshold, self.waiting = lag, spike_threshold, deque[Step]()
        self.counts = dict.fromkeys(KINDS[1:], 0)  # of steps that were not taken
        self.history = torch.full((WINDOW, 2), torch.nan)  # losses and norms of steps taken
        self.finite_loss: tuple[float, int] | None = None  # the last one, and its step

    def state_dict(self) -> dict[str, Any]:
        """What it knows, as JSON can hold it."""
        history = self.history.tolist() if self.spike_threshold else []
        return {"counts": self.counts, "history": history}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with what it knew."""
        self.counts = {kind: int(state["counts"][kind]) for kind in self.counts}
        if self.spike_threshold and state["history"]:
            self.history = torch.tensor(state["history"]).reshape(WINDOW, 2)

    def check_step(
        self,
        loss: torch.Tensor,
        norm: torch.Tensor | None,
        *,
        items: torch.Tensor | int | None,
        number: int,
        rate: float,
        blocks: Sequence[int],
        optimizer: Any,
    ) -> torch.Tensor:
        """Look at a step before it is taken, and keep the optimizer from one that is not to be.

        Args:
            loss: of the step.
            norm: of its gradient; None where infinite ones are somebody else's business.
            items: targets of all processes; None where they are not counted.
            number: of the step.
            rate: its learning rate.
            blocks: numbers of the blocks of its batch.
            optimizer: one of torch's fused ones, or Muon.

        Returns:
            What becomes of the step, on its device.
        """
        values = torch.stack([loss, loss if norm is None else norm]).detach().float()
        kind = (~torch.isfinite(values).all()).float() * NONFINITE
        if self.spike_threshold:
            kind = torch.where(kind == APPLIED, self.spike(values), kind)
        if items is not None:
            kind = torch.where(torch.as_tensor(items, device=kind.device) == 0, EMPTY, kind)
        if distributed.is_initialized():
            distributed.all_reduce(kind, distributed.ReduceOp.MAX)
        if self.lag:
            optimizer.found_inf = (kind > APPLIED).float()
        seen = torch.stack([kind, values[0]])
        host, copied = seen.to("cpu", non_blocking=True), None
        if seen.is_cuda:
            copied = torch.cuda.Event()
            copied.record()
        if not self.lag:  # the host knows already, and an unmarked step is the faster one
            optimizer.found_inf = torch.ones(()) if host[0] > APPLIED else None
        self.waiting.append(Step(number, rate, blocks, host, copied))
        return kind

    def spike(self, values: torch.Tensor) -> torch.Tensor:
        """Whether a loss or a norm leaps out of those of the last steps, which it then joins not.

        As OLMo-core does it, but on the device.
        """
        if distributed.is_initialized():  # every process has a loss of its own
            distributed.all_reduce(values)
            values /= distributed.get_world_size()
        self.history = self.history.to(values.device)
        spread, mean = torch.std_mean(self.history, dim=0)  # NaN until the window is full
        leaps = (values > mean + float(self.spike_threshold or 0) * spread).any()
        joined = torch.cat([self.history[1:], values[None]])
        self.history = torch.where(leaps | ~torch.isfinite(values).all(), self.history, joined)
        return leaps.float() * SPIKE

    def skipped_steps(self, *, lag: int = 0) -> list[Step]:
        """The steps that were not taken, as far as is known; the last `lag` ones stay for later."""
        found = []
        while len(self.waiting) > lag:
            step = self.waiting.popleft()
            if step.copied is not None:
                step.copied.synchronize()
            if step.kind == APPLIED:
                self.finite_loss = (float(step.seen[1]), step.number)
            else:
                self.counts[KINDS[step.kind]] += 1
                found.append(step)
        return found
