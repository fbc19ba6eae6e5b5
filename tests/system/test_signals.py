"""The first signal waits for the step or ends what has none; the second is the system's."""

import contextlib
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
from hf_lm.planning.hardware import detect_hardware
from hf_lm.system import signals
from hf_lm.training.trainer import LMTrainer
from hf_lm.workflows import train as fit


class Send(TrainerCallback):
    """Sends signals to this process in the middle of a step."""

    def __init__(self, step: int, *numbers: int) -> None:
        self.step, self.numbers = step, numbers

    def on_pre_optimizer_step(self, args, state, control, **kwargs) -> None:
        """Between backward and step."""
        if state.global_step == self.step:
            for number in self.numbers:
                os.kill(os.getpid(), number)


class SendSaved(Send):
    """Sends them once what was saved before is on the disk."""

    def __init__(self, trainer: LMTrainer, step: int, *numbers: int) -> None:
        super().__init__(step, *numbers)
        self.trainer = trainer

    def on_pre_optimizer_step(self, args, state, control, **kwargs) -> None:
        """As above."""
        if state.global_step == self.step:
            self.trainer.writer.wait()
        super().on_pre_optimizer_step(args, state, control, **kwargs)


def stopped(folder: Path, *numbers: int) -> StoppedError:
    """What a run raises that is sent signals in its sixth step."""
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
def test_the_first_signal_leaves_an_exact_checkpoint_of_its_step(
    number: int, code: int, tmp_path: Path
) -> None:
    handler = signal.getsignal(number)
    error = stopped(tmp_path / "run", number)
    assert error.exit_code == code
    assert "at step 6, with a checkpoint; the same command continues" in str(error)
    assert CheckpointStore(tmp_path / "run").latest_valid() == tmp_path / "run" / "checkpoint-6"
    assert signal.getsignal(number) == handler
    continued(tmp_path / "run", {"dropout": 0.2})
    continued(tmp_path / "whole", {"dropout": 0.2})
    assert same(state_of(tmp_path / "run"), state_of(tmp_path / "whole"))


@pytest.mark.promise("90")
def test_a_signal_behind_the_last_step_ends_no_less(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, {})
    trainer.add_callback(Send(RESUME_STEPS - 1, signal.SIGTERM))
    with pytest.raises(StoppedError, match=f"at step {RESUME_STEPS}"):
        trainer.train_from(None)
    trainer = trainer_of(tmp_path, {})
    trainer.train_from(CheckpointStore(tmp_path).latest_valid())
    assert trainer.state.global_step == RESUME_STEPS


@pytest.mark.promise("90")
def test_a_signal_in_the_step_that_stops_early_does_not_hide_that(tmp_path: Path) -> None:
    axis = {"early_stopping_patience": 2, "eval_steps": 2, "save_steps": 2}
    trainer = trainer_of(tmp_path, axis)
    trainer.add_callback(Send(5, signal.SIGTERM))
    with pytest.raises(StoppedError, match="at step 6"):
        trainer.train_from(None)
    assert continued(tmp_path, axis).state.global_step == 6


class SendAll(Send):
    """Sends them to the workers of the DataLoader first, as to a group, and not as their parent."""

    def on_pre_optimizer_step(self, args, state, control, **kwargs) -> None:
        """Between backward and step."""
        if state.global_step == self.step:
            workers = multiprocessing.active_children()
            assert workers
            pids = [str(worker.pid) for worker in workers]
            for number in self.numbers:
                subprocess.run(["sh", "-c", f'kill -{int(number)} "$@"', "sh", *pids], check=True)
            time.sleep(0.2)  # in which the death of a worker is told
        super().on_pre_optimizer_step(args, state, control)


@pytest.mark.promise("90")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_group_leaves_the_workers_to_the_end(
    number: int, tmp_path: Path
) -> None:
    trainer = trainer_of(tmp_path, {"dataloader_num_workers": 2})
    trainer.add_callback(SendAll(5, number))
    with pytest.raises(StoppedError, match="at step 6"):
        trainer.train_from(None)
    assert CheckpointStore(tmp_path).latest_valid() == tmp_path / "checkpoint-6"


@pytest.mark.promise("90")
@pytest.mark.parametrize("numbers", [(signal.SIGTERM,) * 2, (signal.SIGINT, signal.SIGTERM)])
def test_the_second_signal_is_at_once(numbers: tuple[int, ...], tmp_path: Path) -> None:
    def run() -> None:
        torch.set_num_threads(1)  # the threads of the parent are not there in a fork
        signal.alarm(60)
        trainer = trainer_of(tmp_path, {})
        trainer.add_callback(SendSaved(trainer, 5, *numbers))
        trainer.train_from(None)

    assert in_child(run) == -numbers[-1]
    assert CheckpointStore(tmp_path).latest_valid() == tmp_path / "checkpoint-3"


@pytest.mark.promise("91")
def test_the_launchers_own_copy_of_a_signal_is_no_second_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert stopped(tmp_path, signal.SIGTERM, signal.SIGTERM, signal.SIGHUP).exit_code == 143
    assert CheckpointStore(tmp_path).latest_valid() == tmp_path / "checkpoint-6"


@pytest.mark.promise("90")
def test_what_was_ignored_stays_ignored(tmp_path: Path) -> None:
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        trainer = trainer_of(tmp_path, {})
        trainer.add_callback(Send(5, signal.SIGHUP))
        trainer.train_from(None)
        assert trainer.state.global_step == RESUME_STEPS
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.promise("90")
def test_outside_of_training_a_signal_ends_at_once() -> None:
    with (
        pytest.raises(StoppedError, match=r"stopped by SIGTERM; the same"),
        signals.signals_as_errors(),
    ):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)


@pytest.mark.promise("90")
def test_a_single_process_that_waits_for_no_other_heeds_signals_throughout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def struck(cpu: bool) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    def run() -> None:
        with pytest.raises(StoppedError), signals.signals_as_errors():
            fit.latest_checkpoint(CheckpointStore(tmp_path), detect_hardware(TRAINING))

    monkeypatch.setattr(fit, "PartialState", struck)
    assert in_child(run) == 0


@pytest.mark.promise("90")
def test_a_signal_that_is_lost_before_training_counts_when_it_begins() -> None:
    """As in a finalizer, out of which nothing is raised."""
    with pytest.raises(StoppedError, match="stopped by SIGTERM"), signals.signals_as_errors():
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        with signals.defer_signals():
            pytest.fail("training has begun")


@pytest.mark.promise("90")
def test_an_error_behind_a_signal_is_that_error() -> None:
    with (
        pytest.raises(OSError, match="No space left"),
        signals.signals_as_errors(),
        signals.defer_signals() as found,
    ):
        os.kill(os.getpid(), signal.SIGTERM)
        wait(lambda: bool(found.received))
        raise OSError(28, "No space left on device")


@pytest.mark.promise("90")
def test_a_signal_behind_the_last_look_of_all_ends_no_less(tmp_path: Path) -> None:
    """The processes have agreed by then that there was none."""
    trainer = trainer_of(tmp_path, {"max_steps": 1})

    def late(number: int) -> int:
        if trainer.stopping.signals.received == 0 and trainer.state.global_step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
            wait(lambda: bool(trainer.stopping.signals.received))
        return number

    trainer.all_reduce_max = late  # what is asked behind training; steps ask as before
    with pytest.raises(StoppedError, match="SIGTERM"):
        trainer.train_from(None)


def wait(done: Callable[[], bool]) -> None:
    """Until something is so."""
    end = time.monotonic() + 10
    while not done() and time.monotonic() < end:
        time.sleep(0.01)
    assert done()


@pytest.mark.promise("91")
def test_a_launched_process_ends_with_its_launcher(tmp_path: Path) -> None:
    def child() -> None:
        with signals.defer_signals() as found:
            signals.end_with_launcher()
            (tmp_path / "ready").touch()
            wait(lambda: bool(found.received))
            (tmp_path / str(found.received)).touch()

    def launcher() -> None:
        os.environ["TORCHELASTIC_RUN_ID"] = "none"
        if not os.fork():
            child()
            os._exit(0)
        wait((tmp_path / "ready").exists)
        os._exit(0)

    assert in_child(launcher) == 0
    wait((tmp_path / str(int(signal.SIGHUP))).exists)
