"""Stop training on a signal, and keep a failing tracker from ending a run."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import wraps

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_lm.system.signals import Signals

WARM_STEPS = 5  # before the timed ones: kernels are compiled and memory is allocated in them
TRIAL_SECONDS = 8  # after them
LONGEST_TRIAL = 60  # seconds, if there are steps enough by then

EVENTS = [name for name in vars(TrainerCallback) if name.startswith("on_")]


def isolate_tracker(callback: TrainerCallback, *, notify: Callable[[str], None]) -> None:
    """Let a tracker fail without ending the run; after its first error it is not called again.

    Args:
        callback: a callback of a tracker such as TensorBoard; it is changed.
        notify: called once, with the error.
    """
    errors: list[Exception] = []

    def isolated(event: Callable[..., object]) -> Callable[..., object]:
        """Return a method that calls an event until one has failed."""

        @wraps(event)
        def call_unless_failed(*args: object, **options: object) -> None:
            """Call the event, and note its error."""
            if errors:
                return
            try:
                event(*args, **options)
            except Exception as error:
                errors.append(error)
                notify(
                    f"{type(callback).__name__}: {type(error).__name__}: {error}; "
                    "training continues without it"
                )

        return call_unless_failed

    for name in EVENTS:
        setattr(callback, name, isolated(getattr(callback, name)))


class StepClock(TrainerCallback):
    """Times optimizer steps, and ends training when there are enough.

    Args:
        all_reduce_max: returns the highest of the numbers of all processes.
    """

    def __init__(self, all_reduce_max: Callable[[int], int]) -> None:
        self.all_reduce_max = all_reduce_max
        self.start, self.times = time.monotonic(), list[float]()

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Note the time, and stop at the same step on all processes."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times.append(time.monotonic())
        is_enough = len(self.times) > WARM_STEPS and (
            self.times[-1] - self.times[WARM_STEPS - 1] > TRIAL_SECONDS
            or self.times[-1] - self.start > LONGEST_TRIAL
        )
        if self.all_reduce_max(int(is_enough)):
            control.should_training_stop = True

    @property
    def seconds_per_step(self) -> float:
        """The mean time of a step, without the first ones."""
        ends = self.times[WARM_STEPS - 1 :]
        return (ends[-1] - ends[0]) / (len(ends) - 1)


class StopOnSignal(TrainerCallback):
    """Ends training after the step in which a signal came, at the same step on all processes.

    Args:
        all_reduce_max: returns the highest of the numbers of all processes.
    """

    def __init__(self, all_reduce_max: Callable[[int], int]) -> None:
        self.all_reduce_max, self.signals = all_reduce_max, Signals()
        self.step: int | None = None

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Save a checkpoint and stop if a process has received a signal."""
        if self.all_reduce_max(self.signals.received):
            self.step = state.global_step
            control.should_save = control.should_training_stop = True
