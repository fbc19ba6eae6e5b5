"""Test that the first signal stops a run after its step, and a second one immediately."""

import contextlib
import copy
import json
import multiprocessing
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from processes import in_child
from trainers import RESUME_STEPS, TRAINING, continued, same, state_of, trainer_of
from transformers import TrainerCallback

from hf_lm.checkpoints.store import CheckpointStore
from hf_lm.errors import StoppedError
from hf_lm.planning import agreement
from hf_lm.planning.hardware import detect_hardware
from hf_lm.recipe import make_recipe
from hf_lm.run_dir.directory import RunDirectory
from hf_lm.system import signals
from hf_lm.training.trainer import LMTrainer
from recipes import TINY


class Send(TrainerCallback):
    """Send signals to this process in the middle of a step."""

    def __init__(self, step: int, *numbers: int) -> None:
        self.step, self.numbers = step, numbers

    def on_pre_optimizer_step(self, args, state, control, **kwargs) -> None:
        """Send them between the backward pass and the optimizer step."""
        if state.global_step == self.step:
            for number in self.numbers:
                os.kill(os.getpid(), number)


class SendSaved(Send):
    """Send signals after the previous checkpoint has been written."""

    def __init__(self, trainer: LMTrainer, step: int, *numbers: int) -> None:
        super().__init__(step, *numbers)
        self.trainer = trainer

    def on_pre_optimizer_step(self, args, state, control, **kwargs) -> None:
        """Wait for the checkpoint, then send them."""
        if state.global_step == self.step:
            self.trainer.writer.wait()
        super().on_pre_optimizer_step(args, state, control, **kwargs)


def stop_in_sixth_step(folder: Path, *numbers: int) -> StoppedError:
    """Send signals to a run in its sixth step and return the error that it raises."""
    trainer = trainer_of(folder, {"dropout": 0.2})
    trainer.add_callback(Send(5, *numbers))
    with pytest.raises(StoppedError) as caught:
        trainer.train_from(None)
    return caught.value


@pytest.mark.promise("90")
@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGTERM, 143),
        (signal.SIGINT, 130),
        (signal.SIGHUP, 143),
        (signal.SIGUSR1, 143),
    ],
)
def test_first_signal_leaves_an_exact_checkpoint_of_its_step(
    number: int, code: int, tmp_path: Path
) -> None:
    handler = signal.getsignal(number)
    error = stop_in_sixth_step(tmp_path / "run", number)
    assert error.exit_code == code
    assert "at step 6, with a checkpoint; the same command continues" in str(error)
    assert CheckpointStore(tmp_path / "run").latest_valid() == tmp_path / "run" / "checkpoint-6"
    assert signal.getsignal(number) == handler
    continued(tmp_path / "run", {"dropout": 0.2})
    continued(tmp_path / "uninterrupted", {"dropout": 0.2})
    assert same(state_of(tmp_path / "run"), state_of(tmp_path / "uninterrupted"))


@pytest.mark.promise("90")
def test_signal_in_the_last_step_stops_the_run(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, {})
    trainer.add_callback(Send(RESUME_STEPS - 1, signal.SIGTERM))
    with pytest.raises(StoppedError, match=f"at step {RESUME_STEPS}"):
        trainer.train_from(None)
    trainer = trainer_of(tmp_path, {})
    trainer.train_from(CheckpointStore(tmp_path).latest_valid())
    assert trainer.state.global_step == RESUME_STEPS


@pytest.mark.promise("90")
def test_signal_in_the_step_of_early_stopping_keeps_the_stop(tmp_path: Path) -> None:
    axis = {"early_stopping_patience": 2, "eval_steps": 2, "save_steps": 2}
    trainer = trainer_of(tmp_path, axis)
    trainer.add_callback(Send(5, signal.SIGTERM))
    with pytest.raises(StoppedError, match="at step 6"):
        trainer.train_from(None)
    assert continued(tmp_path, axis).state.global_step == 6


class SendAll(Send):
    """Send signals to the data-loader workers first, as the kernel does for a process group."""

    def on_pre_optimizer_step(self, args, state, control, **kwargs) -> None:
        """Send them between the backward pass and the optimizer step."""
        if state.global_step == self.step:
            workers = multiprocessing.active_children()
            assert workers
            pids = [str(worker.pid) for worker in workers]
            for number in self.numbers:
                subprocess.run(["sh", "-c", f'kill -{int(number)} "$@"', "sh", *pids], check=True)
            time.sleep(0.2)  # in which a dead worker would be noticed
        super().on_pre_optimizer_step(args, state, control)


@pytest.mark.promise("90")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_to_the_process_group_does_not_end_the_workers(number: int, tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, {"dataloader_num_workers": 2})
    trainer.add_callback(SendAll(5, number))
    with pytest.raises(StoppedError, match="at step 6"):
        trainer.train_from(None)
    assert CheckpointStore(tmp_path).latest_valid() == tmp_path / "checkpoint-6"


@pytest.mark.promise("90")
@pytest.mark.parametrize("numbers", [(signal.SIGTERM,) * 2, (signal.SIGINT, signal.SIGTERM)])
def test_second_signal_ends_the_process_immediately(
    numbers: tuple[int, ...], tmp_path: Path
) -> None:
    def run() -> None:
        torch.set_num_threads(1)  # A forked process does not have the threads of its parent.
        signal.alarm(60)
        trainer = trainer_of(tmp_path, {})
        trainer.add_callback(SendSaved(trainer, 5, *numbers))
        trainer.train_from(None)

    assert in_child(run) == -numbers[-1]
    assert CheckpointStore(tmp_path).latest_valid() == tmp_path / "checkpoint-3"


@pytest.mark.promise("91")
def test_signal_forwarded_by_the_launcher_is_not_a_second_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert (
        stop_in_sixth_step(tmp_path, signal.SIGTERM, signal.SIGTERM, signal.SIGHUP).exit_code == 143
    )
    assert CheckpointStore(tmp_path).latest_valid() == tmp_path / "checkpoint-6"


@pytest.mark.promise("90")
def test_ignored_signal_stays_ignored(tmp_path: Path) -> None:
    """SIGHUP is ignored under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        trainer = trainer_of(tmp_path, {})
        trainer.add_callback(Send(5, signal.SIGHUP))
        trainer.train_from(None)
        assert trainer.state.global_step == RESUME_STEPS
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.promise("90")
def test_signal_outside_training_stops_immediately() -> None:
    with (
        pytest.raises(StoppedError, match=r"stopped by SIGTERM; the same"),
        signals.signals_as_errors(),
    ):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)


@pytest.mark.promise("90")
def test_single_process_handles_signals_while_it_connects(monkeypatch: pytest.MonkeyPatch) -> None:
    def send_signal(cpu: bool) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    def run() -> None:
        with pytest.raises(StoppedError), signals.signals_as_errors():
            agreement.connect(detect_hardware(TRAINING), TRAINING)

    monkeypatch.setattr(agreement, "PartialState", send_signal)
    assert in_child(run) == 0


@pytest.mark.promise("90")
def test_signal_lost_before_training_counts_when_training_begins() -> None:
    """An exception in a finalizer is lost, so only the record of the signal remains."""
    with pytest.raises(StoppedError, match="stopped by SIGTERM"), signals.signals_as_errors():
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        with signals.defer_signals():
            pytest.fail("training has begun")


@pytest.mark.promise("90")
def test_signal_that_a_library_swallows_stops_the_run_that_seemed_complete(tmp_path: Path) -> None:
    """Python wraps an exception in `__set_name__` in a RuntimeError, which matplotlib catches."""
    run_dir = RunDirectory(tmp_path / "run")
    recipe = make_recipe(copy.deepcopy(TINY), tmp_path, name="recipe.json")
    with (
        pytest.raises(StoppedError, match="stopped by SIGTERM"),
        signals.signals_as_errors(),
        run_dir.track_status(recipe, {}, []),
        contextlib.suppress(KeyboardInterrupt),
    ):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "stopped"
    with (
        pytest.raises(StoppedError),
        signals.signals_as_errors(),
        contextlib.suppress(KeyboardInterrupt),
    ):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)


@pytest.mark.promise("90")
def test_error_after_a_signal_is_raised_as_it_is() -> None:
    with (
        pytest.raises(OSError, match="No space left"),
        signals.signals_as_errors(),
        signals.defer_signals() as deferred,
    ):
        os.kill(os.getpid(), signal.SIGTERM)
        wait(lambda: bool(deferred.received))
        raise OSError(28, "No space left on device")


@pytest.mark.promise("90")
def test_signal_after_the_last_agreement_stops_the_run(tmp_path: Path) -> None:
    """By then, the processes have agreed that there was no signal."""
    trainer = trainer_of(tmp_path, {"max_steps": 1})

    def late(number: int) -> int:
        if trainer.stopping.signals.received == 0 and trainer.state.global_step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
            wait(lambda: bool(trainer.stopping.signals.received))
        return number

    trainer.all_reduce_max = late  # Only the agreement after training uses it.
    with pytest.raises(StoppedError, match="SIGTERM"):
        trainer.train_from(None)


def wait(done: Callable[[], bool]) -> None:
    """Wait up to 10 seconds until a condition is true."""
    end = time.monotonic() + 10
    while not done() and time.monotonic() < end:
        time.sleep(0.01)
    assert done()


@pytest.mark.promise("91")
def test_launched_process_ends_with_its_launcher(tmp_path: Path) -> None:
    def child() -> None:
        with signals.defer_signals() as deferred:
            signals.end_with_launcher()
            (tmp_path / "ready").touch()
            wait(lambda: bool(deferred.received))
            (tmp_path / str(deferred.received)).touch()

    def launcher() -> None:
        os.environ["TORCHELASTIC_RUN_ID"] = "none"
        if not os.fork():
            child()
            os._exit(0)
        wait((tmp_path / "ready").exists)
        os._exit(0)

    assert in_child(launcher) == 0
    wait((tmp_path / str(int(signal.SIGHUP))).exists)
