"""LMTrainer: the transformers Trainer with overridden hooks, and nothing else.

What differs from the stock Trainer, and why:
  - the optimizer and its schedule are made by functions it is given: transformers has neither decay
    of matrices alone nor a warmup that starts above rate 0;
  - evaluation is a function it is given too: the stock one averages over batches, not tokens, and
    keeps every logit;
  - a step that is not finite, leaps out or counts nothing never reaches the weights;
  - checkpoints are written and read by what it inherits from resume.py;
  - rows go to log.jsonl as numbers, with the tokens seen and the speed.
The loss itself stays the stock one, which is the exact mean over tokens once the collator gives
`shift_labels` and the model's `loss_type` says what it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import gather_object
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, IterableDataset, Sampler
from transformers import (
    EarlyStoppingCallback,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from hf_lm.checkpoints.manifest import STATE_JSON
from hf_lm.checkpoints.validation import FieldTypes, check_types, invalid_checkpoint_errors
from hf_lm.errors import NonFiniteError
from hf_lm.recipe import TrainingRecipe
from hf_lm.system.signals import ignore_signals
from hf_lm.training.resumable_trainer import ResumableTrainer
from hf_lm.training.skip_step import APPLIED, KINDS, NONFINITE, Step, StepGuard
from hf_lm.training.throughput import ThroughputMeter

Row = dict[str, Any]


OWN_KINDS: FieldTypes = {"seconds": (int, float), "left_out": (int,), "guard": (dict,)}


NAMED = 8  # blocks of a batch that an error lists; the log has them all


EVALUATED = ("loss", "perplexity", "accuracy", "bits_per_byte")  # of what `measure` returns


@dataclass(frozen=True)
class TrainerHooks:
    """What a trainer is given to call; none of it is the trainer's own business.

    Attributes:
        make_optimizer: model to optimizer.
        make_schedule: optimizer and number of steps to learning rates.
        evaluate: model to metrics, on all processes.
        generate_samples: model to texts, on the main process.
        write_row: takes a row of log.jsonl, on the main process.
        flops_per_token: FLOPs to train on one token.
        peak_flops: FLOP/s of all devices.
        sampler: the order of the training blocks; None is a random one.
        max_nonfinite_steps: steps that may be left out because they are not finite.
        spike_threshold: standard deviations that make a spike; None leaves none out.
    """

    make_optimizer: Callable[[torch.nn.Module], torch.optim.Optimizer]
    make_schedule: Callable[[Any, int], LambdaLR]
    evaluate: Callable[[Any], dict[str, float]]
    generate_samples: Callable[[Any], list[dict[str, str]]]
    write_row: Callable[[Row], None]
    flops_per_token: float
    peak_flops: float
    sampler: Sampler[int] | None = None
    max_nonfinite_steps: int = 0
    spike_threshold: float | None = None


class LMTrainer(ResumableTrainer):
    """A causal language model's Trainer."""

    def __init__(self, *, hooks: TrainerHooks, **trainer_args: Any) -> None:
        self.hooks, self.clock = hooks, ThroughputMeter()
        self.counted: list[Any] = []  # of the steps since the last look
        # Anything but an Optimizer class is called, and what it returns is called with the model.
        factory: Any = (lambda: hooks.make_optimizer, {})
        super().__init__(optimizer_cls_and_kwargs=factory, **trainer_args)
        self.guard = StepGuard(
            lag=int(self.args.device.type == "cuda"), spike_threshold=hooks.spike_threshold
        )
        self.blocks, self.skipped_steps, self.logged_step = cast("list[int]", []), 0, 0

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> LambdaLR:
        """Use our own schedule: every warmup of transformers wastes step one at rate 0."""
        if self.lr_scheduler is None:
            self.lr_scheduler = self.hooks.make_schedule(
                optimizer or self.optimizer, num_training_steps
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def get_train_dataloader(self) -> DataLoader:
        """Leave a stream to itself: it already reads this process's share, at its own position."""
        if not isinstance(self.train_dataset, IterableDataset):
            loader = super().get_train_dataloader()
            inner: Any = cast("Any", loader).base_dataloader  # accelerate's wrapper starts none
            inner.worker_init_fn = partial(ignore_signals, inner.worker_init_fn)
            return loader
        return DataLoader(
            self.train_dataset,
            batch_size=self._train_batch_size,
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory,
            generator=torch.Generator(),  # it would draw from the restored stream of numbers
        )

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        """Keep the order of a mixture, whose shares a random one would not meet."""
        return self.hooks.sampler or super()._get_train_sampler(train_dataset)

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, torch.Tensor | int | None]:
        """Keep the count of a step's targets, which is on the device: to look would be to wait."""
        if self.clock.start is None:
            self.clock.begin(self.tokens)
            self.continue_sums()
            self.logged_step = self._globalstep_last_logged
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.blocks = [number for batch in batches for number in batch.pop("numbers", ())]
        self.loss_before = self._tr_loss.clone()
        self.counted.append(items)
        return batches, items

    @property
    def tokens(self) -> int:
        """Tokens predicted so far by all processes, padding left out."""
        counted, self.counted = self.counted, []
        self.state.num_input_tokens_seen += int(sum(counted))
        return self.state.num_input_tokens_seen

    def floating_point_ops(self, inputs: dict[str, torch.Tensor]) -> int:
        """Count the output matrix and attention too, and do not walk the modules at every step."""
        return int(inputs["input_ids"].numel() * self.hooks.flops_per_token)

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        """Keep a step that is not finite from the weights, and its loss from the mean.

        With fp16 the loss alone is looked at: its scaler skips infinite gradients by design.
        """
        grad_norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        kind = self.guard.check_step(
            self._tr_loss - self.loss_before,
            None if self.args.fp16 else torch.as_tensor(grad_norm),
            items=self.counted[-1],
            number=self.state.global_step + 1,
            rate=self._get_learning_rate(),
            blocks=self.blocks,
            optimizer=cast("Any", self.optimizer).optimizer,  # without accelerate's wrapper
        )
        self._tr_loss.copy_(torch.where(kind > APPLIED, self.loss_before, self._tr_loss))
        self.note_left_out(lag=self.guard.lag)
        return grad_norm

    def note_left_out(self, *, lag: int = 0) -> None:
        """Write a row for a step that was not taken; raise for one too many that was not finite.

        Args:
            lag: as many of the last steps are left for later.
        """
        for step in self.guard.skipped_steps(lag=lag):
            blocks = gather_object([*step.blocks])
            row = {"learning_rate": step.rate, "blocks": blocks}
            if (
                step.kind != NONFINITE
                or self.guard.counts["nonfinite"] <= self.hooks.max_nonfinite_steps
            ):
                self.skipped_steps += 1
                self.write_row({"skipped": KINDS[step.kind], **row}, step=step.number)
            else:
                self.write_row({"loss": float("nan"), **row}, step=step.number)
                raise NonFiniteError(self.nonfinite_message(step, blocks))

    def nonfinite_message(self, step: Step, blocks: list[int]) -> str:
        """What is known of a step that was not finite, and what to do."""
        before = "no loss before it was finite"
        if self.guard.finite_loss:
            before = "the last finite loss was {:.4f}, of step {}".format(*self.guard.finite_loss)
        batch = ", ".join(map(str, blocks[:NAMED])) + (", …" if len(blocks) > NAMED else "")
        return (
            f"step {step.number}: the loss or its gradient is NaN or infinite at learning rate "
            f"{step.rate:g}; this step was not taken; {before}"
            + (f"; the batch was of the blocks {batch}" if blocks else "")
            + ". Lower training.learning_rate, raise training.warmup_steps, set training.precision "
            'to "fp32", or allow for some such steps with training.skip_nonfinite_steps'
        )

    def extra_state(self) -> dict[str, Any]:
        """The time so far, and what was left out of it."""
        guard = self.guard.state_dict()
        return {"seconds": self.clock.seconds, "left_out": self.skipped_steps, "guard": guard}

    def load_state(self, checkpoint: Path) -> bool:
        """Go on with the time so far, and what was left out of it."""
        steps_left = super().load_state(checkpoint)
        with invalid_checkpoint_errors(checkpoint):
            check_types(STATE_JSON, self.restored, OWN_KINDS)
            self.clock = ThroughputMeter(self.restored["seconds"])
            self.skipped_steps = self.restored["left_out"]
            self.guard.load_state_dict(self.restored["guard"])
        return steps_left

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Sum over tokens and processes, so that no batch size and no world size shows."""
        self.note_left_out()
        began = time.monotonic()
        measured = self.hooks.evaluate(self.model)
        metrics = {f"{metric_key_prefix}_{name}": measured[name] for name in EVALUATED}
        samples = self.hooks.generate_samples(self.model) if self.is_world_process_zero() else []
        super().log(dict(metrics))
        self.write_row({**metrics, "samples": samples})
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        self.clock.paused += time.monotonic() - began
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add speed and utilization to a training row, and keep the row as numbers.

        There is none before its steps are known to be finite.
        """
        if "loss" in logs:
            self.note_left_out()
            steps, self.logged_step = (
                self.state.global_step - self.logged_step,
                self.state.global_step,
            )
            taken, self.skipped_steps = steps - self.skipped_steps, 0
            logs["loss"] = logs["loss"] * steps / taken if taken else float("nan")
            speed = self.clock.tokens_per_second(self.tokens)
            if speed:
                logs["tokens_per_second"] = speed
                logs["mfu"] = speed * self.hooks.flops_per_token / self.hooks.peak_flops
            self.write_row(logs)
        super().log(logs, start_time)

    def write_row(self, values: Row, *, step: int | None = None) -> None:
        """One row of log.jsonl, from the main process."""
        if self.is_world_process_zero():
            place = {
                "step": step or self.state.global_step,
                "tokens": self.tokens,
                "seconds": round(self.clock.seconds, 3),
            }
            self.hooks.write_row({**place, **values})

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Save no step that may not be finite, and keep the time of the copy out of the speed."""
        self.note_left_out()
        began = time.monotonic()
        self.state.num_input_tokens_seen = self.tokens  # as the state is written now
        super()._save_checkpoint(model, trial)
        self.clock.paused += time.monotonic() - began


def build_trainer(
    recipe: TrainingRecipe,
    args: TrainingArguments,
    *,
    hooks: TrainerHooks,
    callbacks: list[TrainerCallback],
    **trainer_args: Any,
) -> LMTrainer:
    """An LMTrainer with the recipe's callbacks, and without the stock console output."""
    if recipe.early_stopping_patience:
        callbacks = [*callbacks, EarlyStoppingCallback(recipe.early_stopping_patience)]
    trainer = LMTrainer(args=args, hooks=hooks, callbacks=callbacks, **trainer_args)
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    return trainer
