"""Show a progress bar, or log lines, while a run trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

METRICS = {
    "loss": "{:.4f}",
    "perplexity": "{:.2f}",
    "accuracy": "{:.1%}",
    "bits_per_byte": "{:.4f}",
}


class ProgressBar(TrainerCallback):
    """A bar on a terminal, lines elsewhere; on the main process."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar: Progress | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the bar where the run stands."""
        if not state.is_world_process_zero:
            return
        self.bar = Progress(
            TextColumn("[bold]train"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[row]}"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=self.console,
            disable=not self.console.is_terminal,
            transient=True,
            speed_estimate_period=600,  # an evaluation in a window of 30 s tripled the time left
        )
        self.bar.add_task("", total=state.max_steps, completed=state.global_step, row="")
        self.bar.start()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Move on."""
        if self.bar:
            self.bar.update(self.bar.task_ids[0], completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the newest row."""
        if not self.bar or not logs:
            return
        step = f"step {state.global_step:>{len(str(state.max_steps))}}"
        if "eval_loss" in logs:
            self.console.print(f"{step}  held out: {evaluated(logs)}", style="green")
        elif "loss" in logs:
            row = trained(logs)
            self.bar.update(self.bar.task_ids[0], row=row)
            if not self.console.is_terminal:
                self.console.print(f"{step}  {row}{self.time_left()}")

    def time_left(self) -> str:
        """The time left, where it can be told."""
        left = self.bar.tasks[0].time_remaining if self.bar else None
        return f"  {left // 60:.0f}:{left % 60:02.0f} left" if left is not None else ""

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the bar away."""
        if self.bar:
            self.bar.stop()


def trained(logs: Mapping[str, float]) -> str:
    """A training row on one line."""
    row = f"loss {logs['loss']:.3f}  rate {logs['learning_rate']:.1e}"
    speed = logs.get("tokens_per_second")
    return f"{row}  {speed:,.0f} tokens/s" if speed else row


def evaluated(logs: Mapping[str, float]) -> str:
    """An evaluation on one line."""
    return "  ".join(
        f"{name.replace('_', ' ')} {form.format(logs[f'eval_{name}'])}"
        for name, form in METRICS.items()
    )
