"""Save and resume a Trainer exactly, through verified checkpoints.

All of the stock saving and loading is replaced: it writes in place, pickles, orders by clock, and
takes what is damaged or missing without a word.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import gather_object
from torch import distributed
from torch.utils.data import IterableDataset
from transformers import EarlyStoppingCallback, Trainer, TrainerState
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
)
from hf_lm.errors import CheckpointError, MismatchError, StoppedError
from hf_lm.system.files import json_file, read_json, text_file
from hf_lm.system.signals import default_signal_handlers, defer_signals
from hf_lm.training.callbacks import StopOnSignal

CONFIG = "config.json"  # so that AutoModelForCausalLM reads a checkpoint, too


KINDS: FieldTypes = {  # of what state.json holds, and of each of its `ranks`
    "schedule": (int,),
    "scaler": (dict, type(None)),
    "ended": (bool,),
    "logged_step": (int,),
    "ranks": (list,),
}


OWN_KINDS: FieldTypes = {"loss": (int, float), "python": (list,), "numpy": (dict,)}


class ResumableTrainer(Trainer):
    """A Trainer that writes checkpoints behind the next steps, and continues exactly.

    Args:
        checkpoints: of the run.
        notify: takes a note for people.
    """

    def __init__(
        self, *, checkpoints: CheckpointStore, notify: Callable[[str], None], **trainer_args: Any
    ) -> None:
        self.checkpoints, self.notify = checkpoints, notify
        self.writer = AsyncWriter(checkpoints, notify=notify)
        self.restored: dict[str, Any] = {}  # state.json of the checkpoint that is continued
        self.own: dict[str, Any] = {}  # what that has of this process
        super().__init__(**trainer_args)
        self.stopping = StopOnSignal(self.all_reduce_max)
        self.callback_handler.callbacks.insert(0, self.stopping)  # before who looks at should_save
        self.cpu_group = None  # all processes' hosts, whatever their devices talk through
        if self.args.world_size > 1:
            with default_signal_handlers():
                self.cpu_group = distributed.new_group(backend="gloo")

    def train_from(self, checkpoint: Path | None) -> None:
        """Train to the end, from a checkpoint if there is one; it is all on the disk then.

        Raises:
            StoppedError: a signal came; there is a checkpoint of the step it came in.
            CheckpointError: the checkpoint is whole, and does not hold what it should.
            MismatchError: it is one of another network.
            OSError: a checkpoint could not be written; the one before is whole.
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
            received = self.all_reduce_max(
                self.stopping.signals.received
            )  # all wait for who writes
        received, self.stopping.signals.received = received or self.stopping.signals.received, 0
        if received:
            raise StoppedError(received, self.stopping.step)

    def all_reduce_max(self, number: int) -> int:
        """This process's number to the highest of all processes."""
        if self.cpu_group is None:
            return number
        highest = torch.tensor([number])
        distributed.all_reduce(highest, distributed.ReduceOp.MAX, group=self.cpu_group)
        return int(highest)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Copy the state of all processes into memory, and write it while training goes on."""
        self.find_best()
        ranks = gather_object([self.rank_state()])
        is_main_process = self.is_world_process_zero()
        if not is_main_process and not self.is_fsdp_enabled:  # whose shards are put together by all
            return
        failed = self.writer.pending_error()
        network: Any = self.accelerator.unwrap_model(self.model)
        weights, moments = model_state(network), optimizer_state(self.optimizer)
        frozen = self.frozen
        if not is_main_process:
            return
        self.note_callbacks()
        config = copy.deepcopy(network.config)
        config.use_cache = True  # the Trainer's false would make generate() crawl for users
        scaler = getattr(self.accelerator, "scaler", None)
        numbers = {
            "schedule": cast("Any", self.lr_scheduler).last_epoch,
            "scaler": scaler.state_dict() if scaler else None,
            "ended": self.ended,
            "logged_step": self._globalstep_last_logged,
            "frozen": frozen,
            "ranks": [own for _, own in ranks],
            **self.extra_state(),
        }
        chances = {f"{n}.{key}": t for n, (own, _) in enumerate(ranks) for key, t in own.items()}
        files = {
            **({} if frozen else {CONFIG: text_file(config.to_json_string())}),
            WEIGHTS: tensor_file(weights),
            OPTIMIZER: tensor_file(moments),
            RNG_STATE: tensor_file(chances),
            STATE_JSON: json_file(numbers),
            TRAINER_STATE: json_file(asdict(self.state)),
        }
        step, best = self.state.global_step, self.state.best_global_step or None
        self.writer.write(step, files, best=best, failed=failed)

    @cached_property
    def frozen(self) -> str | None:
        """A hash of the weights under adapters, which no checkpoint holds; None where all train."""
        found = frozen_weights(self.accelerator.unwrap_model(self.model))
        return digest(found) if found else None

    @property
    def ended(self) -> bool:
        """Whether early stopping has had enough, whatever else stops training now."""
        return any(
            callback.early_stopping_patience_counter >= callback.early_stopping_patience
            for callback in self.callback_handler.callbacks
            if isinstance(callback, EarlyStoppingCallback)
        )

    def rank_state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """What this process holds alone: random numbers, the loss to log, the place in a stream."""
        tensors, numbers = rng_state()
        numbers["loss"] = float(self._tr_loss)
        if isinstance(self.train_dataset, IterableDataset):
            numbers["stream"] = cast("Any", self.train_dataset).state_dict()
        return tensors, numbers

    def extra_state(self) -> dict[str, Any]:
        """What a subclass keeps; it is back in `restored`."""
        return {}

    def note_callbacks(self) -> None:
        """Put the state of callbacks into the Trainer's."""
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, ExportableState):
                kept: Any = self.state.stateful_callbacks
                kept[type(callback).__name__] = callback.state()

    def find_best(self) -> None:
        """Take the best checkpoint by its step, wherever the folder was when it was written."""
        if self.state.best_global_step:
            best = self.checkpoints.path(self.state.best_global_step)
            self.state.best_model_checkpoint = str(best)

    def load_state(self, checkpoint: Path) -> bool:
        """Read what the stock loading has no place for; before `train()`, which is given the path.

        The stock Trainer reads and drops every batch of a stream, and is wrong in a second pass.

        Returns:
            Whether there are steps left.
        """
        with invalid_checkpoint_errors(checkpoint):
            self.restored = read_json(checkpoint / STATE_JSON)
            if self.restored.get("frozen") != self.frozen:
                raise MismatchError(
                    f"{checkpoint}: its adapters are for other weights than model.pretrained has; "
                    "bring those back, or start anew with --fresh"
                )
            state = read_json(checkpoint / TRAINER_STATE)
            check_trainer_state(state)
            check_types(STATE_JSON, self.restored, KINDS)
            self.own = self.state_of_rank(checkpoint)
            if "stream" in self.own:
                cast("Any", self.train_dataset).load_state_dict(self.own["stream"])
                self.args.ignore_data_skip = True
            return not self.restored["ended"] and state["global_step"] < self.args.max_steps

    def state_of_rank(self, checkpoint: Path) -> dict[str, Any]:
        """What a checkpoint has of this process.

        Raises:
            MismatchError: it is one of more processes, or fewer.
        """
        ranks = self.restored["ranks"]
        if len(ranks) != self.args.world_size:
            raise MismatchError(
                f"{checkpoint}: world_size was {len(ranks)}, is now {self.args.world_size}: random "
                "numbers and places in a stream belong to a process; start as many, or anew with "
                "--fresh"
            )
        own = ranks[self.args.process_index]
        check_types(STATE_JSON, own, OWN_KINDS)
        return own

    def continue_sums(self) -> None:
        """Log the mean over the steps since the last row, those before the checkpoint included."""
        if self.restored:
            self._globalstep_last_logged = self.restored["logged_step"]
            self._tr_loss += self.own["loss"]

    def restore_finished_run(self, checkpoint: Path) -> None:
        """Stand where a run stood that was killed behind its last step."""
        with invalid_checkpoint_errors(checkpoint):
            self.state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE))
        if self.is_world_process_zero():
            best = self.state.best_global_step or None
            self.checkpoints.rotate(written=self.state.global_step, best=best)
        self._load_from_checkpoint(str(checkpoint))
        if self.args.load_best_model_at_end and self.state.best_global_step:
            self._load_best_model()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load every weight, strictly."""
        folder = Path(resume_from_checkpoint)
        network = self.accelerator.unwrap_model(model or self.model)
        with invalid_checkpoint_errors(folder):
            weights = read_tensors(folder / WEIGHTS)
        try:
            restore_weights(network, weights)
        except ValueError as error:
            raise MismatchError(f"{folder}: holds another network: {error}") from None

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load the optimizer and the schedule."""
        if checkpoint is not None:
            with invalid_checkpoint_errors(Path(checkpoint)):
                moments = read_tensors(Path(checkpoint) / OPTIMIZER)
                restore_optimizer(self.optimizer, moments)
                restore_schedule(cast("Any", self.lr_scheduler), self.restored["schedule"])

    def _load_scaler(self, checkpoint: str | None) -> None:
        """Load the gradient scaler of fp16."""
        if checkpoint is not None and self.restored["scaler"]:
            cast("Any", self.accelerator.scaler).load_state_dict(self.restored["scaler"])

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Go on with this process's random numbers."""
        if checkpoint is not None:
            rank = self.args.process_index
            with invalid_checkpoint_errors(Path(checkpoint)):
                tensors = read_tensors(Path(checkpoint) / RNG_STATE)
                own = {n.split(".")[1]: t for n, t in tensors.items() if n.startswith(f"{rank}.")}
                restore_rng(own, self.own)

    def _load_callback_state(self) -> None:
        """Give callbacks back what they said of themselves, and nothing that they did not.

        The stock way makes new callbacks of whatever the file says, and restores that training is
        to stop.
        """
        self.find_best()
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, ExportableState):
                kept: Any = self.state.stateful_callbacks
                found = kept.get(type(callback).__name__, {})
                for name in callback.state()["attributes"].keys() & found.get("attributes", {}):
                    setattr(callback, name, found["attributes"][name])

    def _load_best_model(self) -> None:
        """Take the weights of the best evaluation.

        Raises:
            CheckpointError: its checkpoint is gone, or damaged.
        """
        self.writer.wait()
        self.accelerator.wait_for_everyone()
        folder = self.checkpoints.path(cast("int", self.state.best_global_step))
        problems = list(verify(folder))
        if problems:
            raise CheckpointError(
                f"{folder}: holds the best model, and {problems[0]}; the last one goes on with "
                "--set training.load_best_model_at_end=false "
                "--accept-change training.load_best_model_at_end"
            )
        self._load_from_checkpoint(str(folder))
