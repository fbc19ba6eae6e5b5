"""Keep steps with a non-finite or outlying loss away from the weights.

A non-finite step never changes the weights, and a spike does not if the recipe says so. On a GPU
the decision stays on the device: `found_inf`, the attribute that a GradScaler sets, makes a fused
optimizer skip the step. The host reads the decision one step later; reading it at once would make
the GPU wait.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import distributed

WINDOW = 128  # steps whose mean and spread define a spike, as in OLMo-core's SkipStepOptimizer

APPLIED, EMPTY, SPIKE, NONFINITE = range(4)  # the highest value of all processes counts

KINDS = ("taken", "empty", "spike", "nonfinite")  # names in log.jsonl and in checkpoints


class Step(NamedTuple):
    """A checked step.

    Attributes:
        number: the optimizer step.
        rate: its learning rate.
        blocks: the numbers of the blocks of its batch.
        result: [2] on the host: the kind and the loss, valid after `copied`.
        copied: the event of the copy from a GPU; None on a CPU.
    """

    number: int
    rate: float
    blocks: Sequence[int]
    result: torch.Tensor
    copied: torch.cuda.Event | None

    @property
    def kind(self) -> int:
        """APPLIED, or the reason why the step was skipped."""
        return int(self.result[0])


class StepGuard:
    """Checks every step without making a GPU wait.

    Args:
        lag: the number of steps after which the host reads the result of a step.
        spike_threshold: standard deviations above the mean of the last steps at which a loss or
            a gradient norm is a spike; None does not look for spikes.
    """

    def __init__(self, lag: int, *, spike_threshold: float | None = None) -> None:
        self.lag, self.spike_threshold, self.waiting = lag, spike_threshold, deque[Step]()
        self.counts = dict.fromkeys(KINDS[1:], 0)  # skipped steps of each kind
        self.history = torch.full((WINDOW, 2), torch.nan)  # loss and norm of the last applied steps
        self.finite_loss: tuple[float, int] | None = None  # the last finite loss and its step
        self.skip: torch.Tensor | None = None  # 1.0 if the optimizer has to skip the next step
        self.scaled: Any = None  # the optimizer that a GradScaler steps

    def state_dict(self) -> dict[str, Any]:
        """Return the state as values that JSON can hold."""
        history = self.history.tolist() if self.spike_threshold else []
        return {"counts": self.counts, "history": history}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
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
        """Check a step before the optimizer applies it, and make the optimizer skip a bad one.

        Args:
            loss: the loss of the step.
            norm: its gradient norm; None if a GradScaler handles infinite gradients.
            items: targets of all processes; None if they are not counted.
            number: the optimizer step.
            rate: its learning rate.
            blocks: the numbers of the blocks of its batch.
            optimizer: Muon, or a fused optimizer of torch.

        Returns:
            The kind of the step, on the device.
        """
        values = torch.stack([loss, loss if norm is None else norm]).detach().float()
        kind = (~torch.isfinite(values).all()).float() * NONFINITE
        if self.spike_threshold:
            kind = torch.where(kind == APPLIED, self.spike(values), kind)
        if items is not None:
            kind = torch.where(torch.as_tensor(items, device=kind.device) == 0, EMPTY, kind)
        if distributed.is_initialized():
            distributed.all_reduce(kind, distributed.ReduceOp.MAX)
        result = torch.stack([kind, values[0]])
        host, copied = result.to("cpu", non_blocking=True), None
        if result.is_cuda:
            copied = torch.cuda.Event()
            copied.record()
        self.skip = (kind > APPLIED).float()
        if not self.lag and host[0] == APPLIED:  # the host knows, and a step without it is faster
            self.skip = None
        optimizer.found_inf = self.skip
        if norm is None and self.scaled is not optimizer:
            self.scaled = optimizer
            optimizer.register_step_pre_hook(self.add_to_scaler)
        self.waiting.append(Step(number, rate, blocks, host, copied))
        return kind

    def add_to_scaler(self, optimizer: Any, *_: object) -> None:
        """Skip what the guard skips, too: a GradScaler replaces `found_inf` before each step."""
        if self.skip is not None:
            optimizer.found_inf = torch.maximum(optimizer.found_inf, self.skip)

    def spike(self, values: torch.Tensor) -> torch.Tensor:
        """Return SPIKE if a loss or a norm is an outlier among the last steps, else APPLIED.

        An outlier is not added to the history. This is OLMo-core's rule, computed on the device.
        """
        if distributed.is_initialized():  # every process has its own loss
            distributed.all_reduce(values)
            values /= distributed.get_world_size()
        self.history = self.history.to(values.device)
        spread, mean = torch.std_mean(self.history, dim=0)  # NaN until the window is full
        is_spike = (values > mean + float(self.spike_threshold or 0) * spread).any()
        extended = torch.cat([self.history[1:], values[None]])
        is_outlier = is_spike | ~torch.isfinite(values).all()
        self.history = torch.where(is_outlier, self.history, extended)
        return is_spike.float() * SPIKE

    def skipped_steps(self, *, lag: int = 0) -> list[Step]:
        """Return the steps that were skipped since the last call, except for the last `lag`."""
        skipped = []
        while len(self.waiting) > lag:
            step = self.waiting.popleft()
            if step.copied is not None:
                step.copied.synchronize()
            if step.kind == APPLIED:
                self.finite_loss = (float(step.result[1]), step.number)
            else:
                self.counts[KINDS[step.kind]] += 1
                skipped.append(step)
        return skipped
