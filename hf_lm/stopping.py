"""Signals that were noted in; the same last step on all processes out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_lm.signals import Signals


class StopOnSignal(TrainerCallback):
    """Ends training behind the step in which a signal came, on all processes at the same one.

    Args:
        agree: this process's number to the highest of all processes.
    """

    def __init__(self, agree: Callable[[int], int]) -> None:
        self.agree, self.signals = agree, Signals()
        self.step: int | None = None

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save and stop."""
        if self.agree(self.signals.received):
            self.step = state.global_step
            control.should_save = control.should_training_stop = True
