"""Callbacks: stop on a signal, and isolate trackers that fail."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_lm.system.signals import Signals

EVENTS = [name for name in vars(TrainerCallback) if name.startswith("on_")]


def isolate_tracker(callback: TrainerCallback, *, notify: Callable[[str], None]) -> None:
    """Let a tracker fail without ending the run; it is told once, and not called again."""
    failed: list[Exception] = []

    def isolated(event: Callable[..., Any]) -> Callable[..., Any]:
        """The same event, tried."""

        @wraps(event)
        def tried(*args: Any, **options: Any) -> None:
            """Call it, until it has failed once."""
            if failed:
                return
            try:
                event(*args, **options)
            except Exception as error:
                failed.append(error)
                notify(
                    f"{type(callback).__name__}: {type(error).__name__}: {error}; "
                    "training goes on without it"
                )

        return tried

    for name in EVENTS:
        setattr(callback, name, isolated(getattr(callback, name)))


class StopOnSignal(TrainerCallback):
    """Ends training behind the step in which a signal came, on all processes at the same one.

    Args:
        all_reduce_max: this process's number to the highest of all processes.
    """

    def __init__(self, all_reduce_max: Callable[[int], int]) -> None:
        self.all_reduce_max, self.signals = all_reduce_max, Signals()
        self.step: int | None = None

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save and stop."""
        if self.all_reduce_max(self.signals.received):
            self.step = state.global_step
            control.should_save = control.should_training_stop = True
