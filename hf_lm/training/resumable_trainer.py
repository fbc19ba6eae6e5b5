"""Save and resume a Trainer exactly, through verified checkpoints.

All of the stock saving and loading is replaced: it overwrites files in place, pickles, orders
checkpoints by time, and accepts damaged or missing files silently.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import gather_object
from torch import distributed
from torch.utils.data import IterableDataset
from transformers import EarlyStoppingCallback, Trainer, TrainerState, set_seed
from transformers.trainer_callback import ExportableState

from hf_lm.checkpoints.async_writer import AsyncWriter
from hf_lm.checkpoints.manifest import (
    OPTIMIZER,
    RNG_STATE,
    STATE_JSON,
    TRAINER_STATE,
    WEIGHTS,
    verify,
)
from hf_lm.checkpoints.state import (
    digest,
    frozen_weights,
    model_state,
    optimizer_state,
    parameter_names,
    read_tensors,
    restore_optimizer,
    restore_rng,
    restore_schedule,
    restore_weights,
    rng_state,
    tensor_file,
)
from hf_lm.checkpoints.store import CheckpointStore
from hf_lm.checkpoints.validation import (
    FieldTypes,
    check_trainer_state,
    check_types,
    invalid_checkpoint_errors,
    state_of_rank,
)
from hf_lm.errors import CheckpointError, MismatchError, StoppedError
from hf_lm.system.files import json_file, read_json, text_file
from hf_lm.system.signals import default_signal_handlers, defer_signals
from hf_lm.training.callbacks import StopOnSignal

CONFIG = "config.json"  # with it, AutoModelForCausalLM can load a checkpoint

STATE_TYPES: FieldTypes = {  # fields of state.json
    "schedule": (int,),
    "scaler": (dict, type(None)),
    "ended": (bool,),
    "logged_step": (int,),
    "ranks": (list,),
}


class ResumableTrainer(Trainer):
    """A Trainer that writes checkpoints in the background and resumes exactly.

    Args:
        checkpoints: the checkpoints of the run.
        notify: called with a note for the user.
        trainer_args: arguments of the transformers Trainer.
    """

    def __init__(
        self, *, checkpoints: CheckpointStore, notify: Callable[[str], None], **trainer_args: Any
    ) -> None:
        self.checkpoints, self.notify = checkpoints, notify
        self.writer = AsyncWriter(checkpoints, notify=notify)
        self.restored: dict[str, Any] = {}  # state.json of the checkpoint to resume from
        self.restored_step = 0
        self.restored_rank: Mapping[str, Any] = {}  # the part of it that belongs to this process
        super().__init__(**trainer_args)
        self.stopping = StopOnSignal(self.all_reduce_max)
        self.callback_handler.callbacks.insert(0, self.stopping)  # others read should_save after it
        self.cpu_group = None  # signals are exchanged between CPUs, whatever the devices use
        if self.args.world_size > 1:
            with default_signal_handlers():
                self.cpu_group = distributed.new_group(backend="gloo")

    def train_from(self, checkpoint: Path | None) -> None:
        """Train to the end, from a checkpoint if there is one, and wait until all is on the disk.

        Raises:
            StoppedError: a signal came; a checkpoint of that step was written.
            CheckpointError: the checkpoint is undamaged, but its content is not valid.
            MismatchError: the checkpoint is of another model or another number of processes.
            OSError: a checkpoint could not be written; the one before it is valid.
        """
        with defer_signals() as self.stopping.signals:
            try:
                if checkpoint is None:
                    self.train()
                elif self.load_state(checkpoint):
                    self.train(resume_from_checkpoint=str(checkpoint))
                else:
                    self.restore_finished_run(checkpoint)
            finally:
                self.writer.wait()
            # This call also makes every process wait for the one that writes.
            received = self.all_reduce_max(self.stopping.signals.received)
        received = received or self.stopping.signals.received
        self.stopping.signals.received = 0
        if received:
            raise StoppedError(received, self.stopping.step)

    def all_reduce_max(self, number: int) -> int:
        """Return the highest of the numbers of all processes."""
        if self.cpu_group is None:
            return number
        highest = torch.tensor([number])
        distributed.all_reduce(highest, distributed.ReduceOp.MAX, group=self.cpu_group)
        return int(highest)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Save at the best evaluation so far, which may lie between two saves."""
        is_best = super()._determine_best_metric(metrics, trial)
        if is_best and self.args.load_best_model_at_end:
            self.control.should_save = True
        return is_best

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Copy the state of all processes to memory, and write it while training continues."""
        self.set_best_checkpoint()
        ranks = gather_object([self.rank_state()])
        if not self.is_world_process_zero():
            return
        failed = self.writer.pending_error()
        unwrapped: Any = self.accelerator.unwrap_model(self.model)
        weights, moments = model_state(unwrapped), optimizer_state(self.optimizer)
        frozen = self.frozen_digest
        self.export_callback_states()
        config = copy.deepcopy(unwrapped.config)
        config.use_cache = True  # the Trainer sets it to false, which makes generate() slow
        scaler = getattr(self.accelerator, "scaler", None)
        state = {
            "schedule": cast("Any", self.lr_scheduler).last_epoch,
            "scaler": scaler.state_dict() if scaler else None,
            "ended": self.has_stopped_early,
            "logged_step": self._globalstep_last_logged,
            "frozen": frozen,
            "parameters": parameter_names(unwrapped, self.optimizer),
            "ranks": [numbers for _, numbers in ranks],
            **self.extra_state(),
        }
        generators = {
            f"{rank}.{name}": tensor
            for rank, (tensors, _) in enumerate(ranks)
            for name, tensor in tensors.items()
        }
        files = {
            **({} if frozen else {CONFIG: text_file(config.to_json_string())}),
            WEIGHTS: tensor_file(weights),
            OPTIMIZER: tensor_file(moments),
            RNG_STATE: tensor_file(generators),
            STATE_JSON: json_file(state),
            TRAINER_STATE: json_file(asdict(self.state)),
        }
        step, best = self.state.global_step, self.state.best_global_step or None
        self.writer.write(step, files, best=best, failed=failed)

    @cached_property
    def frozen_digest(self) -> str | None:
        """The SHA-256 of the weights under adapters, which checkpoints lack; None without any."""
        weights = frozen_weights(self.accelerator.unwrap_model(self.model))
        return digest(weights) if weights else None

    @property
    def has_stopped_early(self) -> bool:
        """True if early stopping has ended training; a stop by a signal does not count."""
        return any(
            callback.early_stopping_patience_counter >= callback.early_stopping_patience
            for callback in self.callback_handler.callbacks
            if isinstance(callback, EarlyStoppingCallback)
        )

    def rank_state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return the state of this process: generators, the loss sum, the position in a stream."""
        tensors, numbers = rng_state()
        numbers["loss"] = float(self._tr_loss)
        if isinstance(self.train_dataset, IterableDataset):
            numbers["stream"] = cast("Any", self.train_dataset).state_dict()
        return tensors, numbers

    def extra_state(self) -> dict[str, Any]:
        """Return the state of a subclass; when a run is resumed, `restored` has its keys."""
        return {}

    def export_callback_states(self) -> None:
        """Copy the state of callbacks into the state of the Trainer."""
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, ExportableState):
                states: Any = self.state.stateful_callbacks
                states[type(callback).__name__] = callback.state()

    def set_best_checkpoint(self) -> None:
        """Set the path of the best checkpoint from its step: the directory may have moved."""
        if self.state.best_global_step:
            best = self.checkpoints.path(self.state.best_global_step)
            self.state.best_model_checkpoint = str(best)

    def load_state(self, checkpoint: Path) -> bool:
        """Load the state that the stock loading does not know, before `train()` is called.

        The stock Trainer would read and drop every batch of a stream, and gets a second pass wrong.

        Returns:
            Whether there are steps left to train.

        Raises:
            MismatchError: the checkpoint is of other pretrained weights, or of another number of
                processes.
            CheckpointError: its content is not valid.
        """
        with invalid_checkpoint_errors(checkpoint):
            self.restored = read_json(checkpoint / STATE_JSON)
            if self.restored.get("frozen") != self.frozen_digest:
                raise MismatchError(
                    f"{checkpoint}: its adapters were trained on other weights than those of "
                    "model.pretrained; restore those, or start over with --fresh"
                )
            state = read_json(checkpoint / TRAINER_STATE)
            check_trainer_state(state)
            self.restored_step = state["global_step"]
            check_types(STATE_JSON, self.restored, STATE_TYPES)
            self.restored_rank = state_of_rank(
                self.restored["ranks"],
                checkpoint,
                rank=self.args.process_index,
                world_size=self.args.world_size,
                streaming=isinstance(self.train_dataset, IterableDataset),
            )
            if "python" not in self.restored_rank:
                self.notify(
                    f"another number of processes wrote {checkpoint.name}: random generators start "
                    "anew, so dropout differs from a run that was not stopped"
                )
            if "stream" in self.restored_rank:
                cast("Any", self.train_dataset).load_state_dict(self.restored_rank["stream"])
                self.args.ignore_data_skip = True
            return not self.restored["ended"] and self.restored_step < self.args.max_steps

    def restore_loss_sum(self) -> None:
        """Restore the sum of losses since the last row, so that the next row has the whole mean."""
        if self.restored:
            self._globalstep_last_logged = self.restored["logged_step"]
            self._tr_loss += self.restored_rank["loss"]

    def restore_finished_run(self, checkpoint: Path) -> None:
        """Restore a run whose newest checkpoint is already its final step."""
        with invalid_checkpoint_errors(checkpoint):
            self.state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE))
        if self.is_world_process_zero():
            best = self.state.best_global_step or None
            self.checkpoints.rotate(written=self.state.global_step, best=best)
        self._load_from_checkpoint(str(checkpoint))
        if self.args.load_best_model_at_end and self.state.best_global_step:
            self._load_best_model()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load the weights; each one has to be there, with its shape and type."""
        folder = Path(resume_from_checkpoint)
        unwrapped = self.accelerator.unwrap_model(model or self.model)
        with invalid_checkpoint_errors(folder):
            weights = read_tensors(folder / WEIGHTS)
        try:
            restore_weights(unwrapped, weights)
        except ValueError as error:
            raise MismatchError(f"{folder}: holds another model: {error}") from None

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load the state of the optimizer and of the learning-rate schedule."""
        if checkpoint is not None:
            with invalid_checkpoint_errors(Path(checkpoint)):
                moments = read_tensors(Path(checkpoint) / OPTIMIZER)
                names = parameter_names(self.accelerator.unwrap_model(self.model), self.optimizer)
                saved = self.restored.get("parameters", names)
                fresh = restore_optimizer(self.optimizer, moments, names=names, saved_names=saved)
                if fresh:
                    self.notify(
                        f"{len(fresh)} of {len(names)} parameters have no state for this optimizer "
                        f"in {Path(checkpoint).name} and start with none, such as {fresh[0]}"
                    )
                restore_schedule(cast("Any", self.lr_scheduler), self.restored["schedule"])

    def _load_scaler(self, checkpoint: str | None) -> None:
        """Load the state of the gradient scaler of fp16."""
        if checkpoint is not None and self.restored["scaler"]:
            cast("Any", self.accelerator.scaler).load_state_dict(self.restored["scaler"])

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Restore the random generators of this process."""
        if checkpoint is not None and "python" not in self.restored_rank:
            set_seed(cast("int", self.args.seed) + self.restored_step)
        elif checkpoint is not None:
            rank = self.args.process_index
            with invalid_checkpoint_errors(Path(checkpoint)):
                tensors = read_tensors(Path(checkpoint) / RNG_STATE)
                of_rank = {
                    name.split(".")[1]: tensor
                    for name, tensor in tensors.items()
                    if name.startswith(f"{rank}.")
                }
                restore_rng(of_rank, self.restored_rank)

    def _load_callback_state(self) -> None:
        """Restore the attributes that callbacks of this run exported, and nothing else.

        The stock method creates any callback that the file names, and restores a request to stop.
        """
        self.set_best_checkpoint()
        states: Any = self.state.stateful_callbacks
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, ExportableState):
                saved = states.get(type(callback).__name__, {}).get("attributes", {})
                for name in callback.state()["attributes"].keys() & saved:
                    setattr(callback, name, saved[name])

    def _load_best_model(self) -> None:
        """Load the weights of the best evaluation.

        Raises:
            CheckpointError: the checkpoint of that step is missing or damaged.
        """
        self.writer.wait()
        self.accelerator.wait_for_everyone()
        folder = self.checkpoints.path(cast("int", self.state.best_global_step))
        problems = list(verify(folder))
        if problems:
            raise CheckpointError(
                f"{folder}: holds the best model, and {problems[0]}; to use the last model, add "
                "--set training.load_best_model_at_end=false "
                "--accept-change training.load_best_model_at_end"
            )
        self._load_from_checkpoint(str(folder))
