"""LMTrainer: the transformers Trainer with overridden hooks, and nothing else.

It differs from the stock Trainer in five points:
  - The optimizer and its schedule are made by functions from outside: transformers can neither
    decay matrices only nor start a warmup above learning rate 0.
  - Evaluation is a function from outside: the stock one averages over batches instead of tokens,
    and keeps every logit.
  - A step whose loss is non-finite, is a spike or has no targets does not change the weights.
  - Checkpoints are written and read by the base class in resumable_trainer.py.
  - Rows of log.jsonl hold numbers, with the tokens seen and the throughput.
The loss is the stock one. It is the exact mean over tokens because the collator gives
`shift_labels` and the model has the right `loss_type`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import gather_object
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, IterableDataset
from transformers import EarlyStoppingCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from hf_lm.checkpoints.manifest import STATE_JSON
from hf_lm.checkpoints.validation import FieldTypes, check_types, invalid_checkpoint_errors
from hf_lm.data.loader import Order, RandomOrder, ShareSampler, TrainingLoader
from hf_lm.errors import NonFiniteError
from hf_lm.evaluation.metrics import METRICS
from hf_lm.model.loss import IGNORE_INDEX
from hf_lm.recipe import TrainingRecipe
from hf_lm.system.signals import ignore_signals
from hf_lm.training.resumable_trainer import ResumableTrainer
from hf_lm.training.skip_step import APPLIED, KINDS, NONFINITE, Step, StepGuard
from hf_lm.training.throughput import ThroughputMeter
from hf_lm.upstream import check_upstream

Row = dict[str, Any]

STATE_TYPES: FieldTypes = {"seconds": (int, float), "left_out": (int,), "guard": (dict,)}

LISTED_BLOCKS = 8  # blocks of a batch that an error lists; log.jsonl lists all of them


@dataclass(frozen=True)
class TrainerHooks:
    """Functions and values from other stages that the trainer needs.

    Attributes:
        make_optimizer: makes the optimizer of a model.
        make_schedule: makes the learning-rate schedule of an optimizer for a number of steps.
        evaluate: computes the metrics of a model, on all processes together.
        generate_samples: generates texts with a model; called on the main process.
        write_row: appends a row to log.jsonl; called on the main process.
        flops_per_token: FLOPs to train on one token.
        peak_flops: FLOPs per second of all devices together.
        order: the order of the training blocks; None is a random order.
        max_nonfinite_steps: the number of non-finite steps that are skipped before the run ends.
        spike_threshold: standard deviations above the mean that make a spike; None skips none.
    """

    make_optimizer: Callable[[torch.nn.Module], torch.optim.Optimizer]
    make_schedule: Callable[[Any, int], LambdaLR]
    evaluate: Callable[[Any], dict[str, float]]
    generate_samples: Callable[[Any], list[dict[str, str]]]
    write_row: Callable[[Row], None]
    flops_per_token: float
    peak_flops: float
    order: Order | None = None
    max_nonfinite_steps: int = 0
    spike_threshold: float | None = None


class LMTrainer(ResumableTrainer):
    """The Trainer of a causal language model.

    Args:
        hooks: what the trainer calls.
        trainer_args: arguments of ResumableTrainer and of the transformers Trainer.
    """

    def __init__(self, *, hooks: TrainerHooks, **trainer_args: Any) -> None:
        self.hooks, self.throughput = hooks, ThroughputMeter()
        self.step_targets: list[Any] = []  # targets of each step since the last token count
        # The Trainer calls anything but an Optimizer class, and calls the result with the model.
        factory: Any = (lambda: hooks.make_optimizer, {})
        super().__init__(optimizer_cls_and_kwargs=factory, **trainer_args)
        self.guard = StepGuard(
            lag=int(self.args.device.type == "cuda"), spike_threshold=hooks.spike_threshold
        )
        self.blocks, self.skipped_steps, self.logged_step = cast("list[int]", []), 0, 0

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> LambdaLR:
        """Make our own schedule: every warmup of transformers has learning rate 0 at step one."""
        if self.lr_scheduler is None:
            self.lr_scheduler = self.hooks.make_schedule(
                optimizer or self.optimizer, num_training_steps
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def get_train_dataloader(self) -> DataLoader:
        """Make the loader of this process's share; a stream already reads its own.

        Workers ignore signals. The DataLoader of a resumed epoch is made from this one, without its
        class, so the epoch is set here.
        """
        args = self.args
        options: dict[str, Any] = {
            "collate_fn": self.data_collator,
            "pin_memory": args.dataloader_pin_memory,
        }
        if isinstance(self.train_dataset, IterableDataset):
            # The default generator has just been restored; this loader must not draw from it.
            options |= {"batch_size": self._train_batch_size, "generator": torch.Generator()}
            return DataLoader(self.train_dataset, **options)
        dataset = cast("Any", self.train_dataset)
        sampler = ShareSampler(
            self.hooks.order or RandomOrder(len(dataset), seed=cast("int", args.data_seed)),
            batch_size=self._train_batch_size,
            rank=args.process_index,
            world_size=args.world_size,
        )
        steps = math.ceil(len(sampler) / args.gradient_accumulation_steps)
        sampler.epoch = self.restored_step // steps
        return TrainingLoader(
            dataset,
            sampler,
            num_workers=args.dataloader_num_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            persistent_workers=args.dataloader_persistent_workers,
            multiprocessing_context=args.dataloader_multiprocessing_context,
            in_order=args.dataloader_in_order,
            worker_init_fn=partial(ignore_signals, None),
            **options,
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, torch.Tensor | int | None]:
        """Copy a step's batches to the device, and note its blocks and its number of targets.

        The host does not wait for the device: pinned memory is copied in the background, and the
        number of targets stays on the device until it is needed.
        """
        if self.throughput.start is None:
            self.throughput.begin(self.update_token_count())
            self.restore_loss_sum()
            self.logged_step = self._globalstep_last_logged
        batches = list(islice(epoch_iterator, num_batches))
        self.blocks = [number for batch in batches for number in batch.pop("numbers", ())]
        batches = [
            {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
            for batch in batches
        ]
        targets: Any = sum((batch["shift_labels"] != IGNORE_INDEX).sum() for batch in batches)
        if self.args.world_size > 1 and batches:
            targets = self.accelerator.reduce(targets)
        self.loss_before = self._tr_loss.clone()
        self.step_targets.append(targets)
        return batches, targets

    def update_token_count(self) -> int:
        """Add the targets of the last steps to the state; return the tokens predicted so far.

        The count is over all processes and without padding.
        """
        self.state.num_input_tokens_seen += int(sum(self.step_targets))
        self.step_targets.clear()
        return self.state.num_input_tokens_seen

    def floating_point_ops(self, inputs: dict[str, torch.Tensor]) -> int:
        """Return the FLOPs of a batch, with attention and the output matrix.

        The stock method counts neither and walks over all modules at every step.
        """
        return int(inputs["input_ids"].numel() * self.hooks.flops_per_token)

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        """Keep a non-finite step away from the weights, and its loss out of the logged mean.

        With fp16 only the loss is checked: the scaler skips infinite gradients by design.
        """
        grad_norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        kind = self.guard.check_step(
            self._tr_loss - self.loss_before,
            None if self.args.fp16 else torch.as_tensor(grad_norm),
            items=self.step_targets[-1],
            number=self.state.global_step + 1,
            rate=self._get_learning_rate(),
            blocks=self.blocks,
            optimizer=cast("Any", self.optimizer).optimizer,  # without accelerate's wrapper
        )
        self._tr_loss.copy_(torch.where(kind > APPLIED, self.loss_before, self._tr_loss))
        self.log_skipped_steps(lag=self.guard.lag)
        return grad_norm

    def log_skipped_steps(self, *, lag: int = 0) -> None:
        """Write a row of log.jsonl for each skipped step.

        Args:
            lag: the number of last steps that are not looked at yet.

        Raises:
            NonFiniteError: more steps were non-finite than the recipe allows.
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
        """Describe a non-finite step and its remedies."""
        before = "no earlier loss was finite"
        if self.guard.finite_loss:
            before = "the last finite loss was {:.4f}, at step {}".format(*self.guard.finite_loss)
        listed = ", ".join(map(str, blocks[:LISTED_BLOCKS]))
        listed += ", …" if len(blocks) > LISTED_BLOCKS else ""
        return (
            f"step {step.number}: the loss or its gradient is NaN or infinite at learning rate "
            f"{step.rate:g}; this step was not applied; {before}"
            + (f"; the batch has the blocks {listed}" if blocks else "")
            + ". Lower training.learning_rate, raise training.warmup_steps, set training.precision "
            'to "fp32", or allow some such steps with training.skip_nonfinite_steps'
        )

    def extra_state(self) -> dict[str, Any]:
        """Return the seconds so far, the skipped steps since the last row, and the guard state."""
        guard = self.guard.state_dict()
        return {"seconds": self.throughput.seconds, "left_out": self.skipped_steps, "guard": guard}

    def load_state(self, checkpoint: Path) -> bool:
        """Restore what `extra_state` returned; return whether there are steps left."""
        has_steps_left = super().load_state(checkpoint)
        with invalid_checkpoint_errors(checkpoint):
            check_types(STATE_JSON, self.restored, STATE_TYPES)
            self.throughput = ThroughputMeter(self.restored["seconds"])
            self.skipped_steps = self.restored["left_out"]
            self.guard.load_state_dict(self.restored["guard"])
        return has_steps_left

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Evaluate the model, generate samples and log both.

        The metrics are sums over tokens and processes: they do not depend on the batch size or
        the number of processes.
        """
        self.log_skipped_steps()
        with self.throughput.pause():
            values = self.hooks.evaluate(self.model)
            metrics = {f"{metric_key_prefix}_{name}": values[name] for name in METRICS}
            is_main = self.is_world_process_zero()
            samples = self.hooks.generate_samples(self.model) if is_main else []
            super().log(dict(metrics))
            self.write_row({**metrics, "samples": samples})
            self.control = self.callback_handler.on_evaluate(
                self.args, self.state, self.control, metrics
            )
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add throughput and MFU to a training row, and write the row to log.jsonl.

        A row is written only after its steps are known to be finite.
        """
        if "loss" in logs:
            self.log_skipped_steps()
            steps = self.state.global_step - self.logged_step
            applied = steps - self.skipped_steps
            self.logged_step, self.skipped_steps = self.state.global_step, 0
            logs["loss"] = logs["loss"] * steps / applied if applied else float("nan")
            tokens_per_second = self.throughput.tokens_per_second(self.update_token_count())
            if tokens_per_second:
                flops = tokens_per_second * self.hooks.flops_per_token
                logs["tokens_per_second"] = tokens_per_second
                logs["mfu"] = flops / self.hooks.peak_flops
            self.write_row(logs)
        super().log(logs, start_time)

    def write_row(self, values: Row, *, step: int | None = None) -> None:
        """Write a row to log.jsonl, on the main process."""
        if self.is_world_process_zero():
            row = {
                "step": step or self.state.global_step,
                "tokens": self.update_token_count(),
                "seconds": round(self.throughput.seconds, 3),
            }
            self.hooks.write_row({**row, **values})

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Save a checkpoint once its steps are known to be finite.

        The time of the copy does not count in the throughput.
        """
        self.log_skipped_steps()
        with self.throughput.pause():
            self.update_token_count()  # the state is written now
            super()._save_checkpoint(model, trial)


def build_trainer(
    recipe: TrainingRecipe,
    args: TrainingArguments,
    *,
    hooks: TrainerHooks,
    **trainer_args: Any,
) -> LMTrainer:
    """Build an LMTrainer with the recipe's callbacks and without the stock console output.

    Args:
        recipe: the `training` section.
        args: what `training_arguments` returned.
        hooks: what the trainer calls.
        trainer_args: arguments of LMTrainer.

    Raises:
        HfLmError: the installed transformers lacks a method that LMTrainer overrides.
    """
    check_upstream()
    trainer = LMTrainer(args=args, hooks=hooks, **trainer_args)
    if recipe.early_stopping_patience:
        trainer.add_callback(EarlyStoppingCallback(recipe.early_stopping_patience))
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    return trainer
