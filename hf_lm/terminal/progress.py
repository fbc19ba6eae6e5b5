"""Show a progress bar, or log lines, while a run trains."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_lm.evaluation.metrics import METRICS


class ProgressBar(TrainerCallback):
    """A progress bar on a terminal, and lines elsewhere; only the main process prints."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar: Progress | None = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Start the bar at the current step."""
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
            speed_estimate_period=600,  # With 30 s, one evaluation tripled the estimated time left.
        )
        self.bar.add_task("", total=state.max_steps, completed=state.global_step, row="")
        self.bar.start()

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Move the bar to the current step."""
        if self.bar:
            self.bar.update(self.bar.task_ids[0], completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        """Show the newest log row beside the bar, or as a line."""
        if not self.bar or not logs:
            return
        step = f"step {state.global_step:>{len(str(state.max_steps))}}"
        if "eval_loss" in logs:
            self.console.print(f"{step}  validation: {evaluation_row(logs)}", style="green")
        elif "loss" in logs:
            row = training_row(logs)
            self.bar.update(self.bar.task_ids[0], row=row)
            if not self.console.is_terminal:
                self.console.print(f"{step}  {row}{self.time_left()}")

    def time_left(self) -> str:
        """Format the estimated time left; empty if there is no estimate yet."""
        seconds = self.bar.tasks[0].time_remaining if self.bar else None
        return f"  {seconds // 60:.0f}:{seconds % 60:02.0f} left" if seconds is not None else ""

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Remove the bar."""
        if self.bar:
            self.bar.stop()


def training_row(logs: Mapping[str, float]) -> str:
    """Format the loss, learning rate and speed of a training row."""
    row = f"loss {logs['loss']:.3f}  learning rate {logs['learning_rate']:.1e}"
    speed = logs.get("tokens_per_second")
    return f"{row}  {speed:,.0f} tokens/s" if speed else row


def evaluation_row(logs: Mapping[str, float]) -> str:
    """Format the metrics of an evaluation."""
    return "  ".join(
        f"{metric.label} {metric.format(logs[f'eval_{name}'])}" for name, metric in METRICS.items()
    )
