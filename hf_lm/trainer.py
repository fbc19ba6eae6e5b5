"""transformers' Trainer with its hooks overridden, and nothing else.

What differs from the stock Trainer, and why:
  - the optimizer and its schedule are made by functions it is given: transformers has neither decay
    of matrices alone nor a warmup that starts above rate 0;
  - evaluation is a function it is given too: the stock one averages over batches, not tokens, and
    keeps every logit;
  - a gradient that is not finite stops the run and never reaches the weights;
  - rows go to log.jsonl as numbers, with the tokens seen and the speed.
The loss itself stays the stock one, which is the exact mean over tokens once the collator gives
`shift_labels` and the model's `loss_type` says what it is.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, IterableDataset, Sampler
from transformers import (
    EarlyStoppingCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from hf_lm.errors import NonFiniteError
from hf_lm.finite import FiniteGuard
from hf_lm.recipe import TrainingRecipe

Row = dict[str, Any]
EVALUATED = ("loss", "perplexity", "accuracy", "bits_per_byte")  # of what `measure` returns


@dataclass(frozen=True)
class Hooks:
    """What a trainer is given to call; none of it is the trainer's own business.

    Attributes:
        make_optimizer: model to optimizer.
        make_schedule: optimizer and number of steps to learning rates.
        measure: model to metrics, on all processes.
        sample: model to texts, on the main process.
        write_row: takes a row of log.jsonl, on the main process.
        flops_per_token: FLOPs to train on one token.
        peak_flops: FLOP/s of all devices.
        seconds: how long earlier parts of this run took.
        sampler: the order of the training blocks; None is a random one.
    """

    make_optimizer: Callable[[torch.nn.Module], torch.optim.Optimizer]
    make_schedule: Callable[[Any, int], LambdaLR]
    measure: Callable[[Any], dict[str, float]]
    sample: Callable[[Any], list[dict[str, str]]]
    write_row: Callable[[Row], None]
    flops_per_token: float
    peak_flops: float
    seconds: float = 0.0
    sampler: Sampler[int] | None = None


class Clock:
    """Monotonic seconds since the first step, and those of them spent training."""

    def __init__(self, seconds: float) -> None:
        self.before = seconds
        self.start: float | None = None
        self.paused = 0.0
        self.mark: tuple[float, int] | None = None

    def begin(self, tokens: int) -> None:
        """Start at the first step."""
        self.start = time.monotonic()
        self.mark = (0.0, tokens)

    @property
    def seconds(self) -> float:
        """Seconds since the run's first step, earlier parts included."""
        return self.before + (0.0 if self.start is None else time.monotonic() - self.start)

    def speed(self, tokens: int) -> float | None:
        """Tokens a second since the last call, evaluations and checkpoints left out."""
        if self.start is None or self.mark is None:
            return None
        trained = time.monotonic() - self.start - self.paused
        (then, seen), self.mark = self.mark, (trained, tokens)
        return (tokens - seen) / (trained - then) if trained > then and tokens > seen else None


class LMTrainer(Trainer):
    """A causal language model's Trainer."""

    def __init__(self, *, hooks: Hooks, **trainer_args: Any) -> None:
        self.hooks, self.clock = hooks, Clock(hooks.seconds)
        self.counted: list[Any] = []  # of the steps since the last look
        # Anything but an Optimizer class is called, and what it returns is called with the model.
        factory: Any = (lambda: hooks.make_optimizer, {})
        super().__init__(optimizer_cls_and_kwargs=factory, **trainer_args)
        self.guard = FiniteGuard(lag=int(self.args.device.type == "cuda"))

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
            return super().get_train_dataloader()
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

    def continue_stream(self, checkpoint: Path) -> None:
        """Send a stream to the place a checkpoint was written at.

        The stock Trainer reads and drops every batch before it, and is wrong in a second pass.
        """
        if isinstance(self.train_dataset, IterableDataset):
            state = (checkpoint / self.stream_file).read_text(encoding="utf-8")
            cast("Any", self.train_dataset).load_state_dict(json.loads(state))
            self.args.ignore_data_skip = True

    @property
    def stream_file(self) -> str:
        """The file of a checkpoint with this process's place in the stream."""
        return f"stream-{self.args.process_index}.json"

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, torch.Tensor | int | None]:
        """Keep the count of a step's targets, which is on the device: to look would be to wait."""
        if self.clock.start is None:
            self.clock.begin(self.tokens)
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
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
        """Keep a gradient that is not finite from the weights, and stop.

        With fp16 the loss is looked at instead: its scaler skips infinite gradients by design.
        """
        grad_norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        self.guard.watch(
            self._tr_loss if self.args.fp16 else torch.as_tensor(grad_norm),
            number=self.state.global_step + 1,
            rate=self._get_learning_rate(),
            optimizer=cast("Any", self.optimizer).optimizer,  # without accelerate's wrapper
        )
        self.stop_if_broken(lag=self.guard.lag)
        return grad_norm

    def stop_if_broken(self, *, lag: int = 0) -> None:
        """Raise for a step that was not finite, the last `lag` ones left for later."""
        broken = self.guard.broken(lag=lag)
        if broken:
            self.write_row({"loss": float("nan"), "learning_rate": broken.rate}, step=broken.number)
            raise NonFiniteError(
                f"step {broken.number}: the loss or its gradient is NaN or infinite at learning "
                f"rate {broken.rate:g}; this step was not taken. Lower training.learning_rate, "
                'raise training.warmup_steps, or set training.precision to "fp32"'
            )

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Sum over tokens and processes, so that no batch size and no world size shows."""
        self.stop_if_broken()
        began = time.monotonic()
        measured = self.hooks.measure(self.model)
        metrics = {f"{metric_key_prefix}_{name}": measured[name] for name in EVALUATED}
        samples = self.hooks.sample(self.model) if self.is_world_process_zero() else []
        super().log(dict(metrics))
        self.write_row({**metrics, "samples": samples})
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        self.clock.paused += time.monotonic() - began
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add speed and utilization to a training row, and keep the row as numbers.

        There is one before every checkpoint, and none before its steps are known to be finite.
        """
        if "loss" in logs:
            self.stop_if_broken()
            speed = self.clock.speed(self.tokens)
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
        """Add the place in a stream, and keep the time a checkpoint takes out of the speed."""
        began = time.monotonic()
        if isinstance(self.train_dataset, IterableDataset):
            folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
            folder.mkdir(parents=True, exist_ok=True)
            state = json.dumps(cast("Any", self.train_dataset).state_dict())
            (folder / self.stream_file).write_text(state, encoding="utf-8")
        self.state.num_input_tokens_seen = self.tokens  # as the state is written now
        super()._save_checkpoint(model, trial)
        self.clock.paused += time.monotonic() - began

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Write use_cache true: the Trainer's false would make generate() crawl for users."""
        config: Any = self.accelerator.unwrap_model(self.model).config
        config.use_cache, before = True, config.use_cache
        super()._save(output_dir, state_dict)
        config.use_cache = before


class LogAtSave(TrainerCallback):
    """Write a row with every checkpoint, so that a resumed run's rows mean the same steps."""

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Runs behind the callback that decides about saving."""
        control.should_log = control.should_log or control.should_save


def training_arguments(recipe: TrainingRecipe, **others: Any) -> TrainingArguments:
    """The recipe's training section as transformers says it.

    Args:
        recipe: the section.
        others: what the plan, the machine and the folder say: `max_steps` and the like.
    """
    total = others["max_steps"]
    evaluate = count_steps(recipe.eval_steps, total)
    save = count_steps(recipe.save_steps, total)
    if recipe.load_best_model_at_end:  # shares of all steps may round to what is no multiple
        save = max(1, round(save / evaluate)) * evaluate
    args = TrainingArguments(
        learning_rate=float(recipe.learning_rate),
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        activation_checkpointing=recipe.activation_checkpointing,
        dataloader_num_workers=recipe.dataloader_num_workers,
        dataloader_pin_memory=recipe.dataloader_pin_memory and not others["use_cpu"],
        logging_steps=recipe.logging_steps,
        logging_nan_inf_filter=False,  # it would report the mean of earlier losses for a NaN
        eval_strategy="steps",
        eval_steps=evaluate,
        save_strategy="steps",
        save_steps=save,
        save_total_limit=recipe.save_total_limit,
        load_best_model_at_end=recipe.load_best_model_at_end,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        restore_callback_states_from_checkpoint=recipe.early_stopping_patience is not None,
        ddp_find_unused_parameters=False,  # every parameter takes part; looking costs time
        report_to=recipe.report_to if isinstance(recipe.report_to, str) else [*recipe.report_to],
        **others,
        **recipe.extra_args,
    )
    if args.n_gpu > 1:
        args._n_gpu = (
            1  # several GPUs in one process would mean nn.DataParallel, which scales wrongly
        )
    return args


def count_steps(steps: float, total: int) -> int:
    """A number of steps that may be given as a share of all steps."""
    return int(steps) if steps >= 1 else max(1, round(steps * total))


def build_trainer(
    recipe: TrainingRecipe,
    args: TrainingArguments,
    *,
    hooks: Hooks,
    callbacks: list[TrainerCallback],
    **trainer_args: Any,
) -> LMTrainer:
    """An LMTrainer with the recipe's callbacks, and without the stock console output."""
    if recipe.early_stopping_patience:
        callbacks = [*callbacks, EarlyStoppingCallback(recipe.early_stopping_patience)]
    trainer = LMTrainer(args=args, hooks=hooks, callbacks=[LogAtSave(), *callbacks], **trainer_args)
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    return trainer
