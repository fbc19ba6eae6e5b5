"""Memory that runs out, workers that are killed and trackers that fail: one line each."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from trainers import TRAINING, make_blocks, make_trainer
from transformers import TrainerCallback

from hf_lm.checkpoints.store import CheckpointStore
from hf_lm.errors import DataError, RecipeError
from hf_lm.training.callbacks import isolate_tracker
from hf_lm.training.failures import explain_failures


@pytest.mark.promise("101")
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"
        ),
    ],
)
def test_out_of_memory_is_one_line_with_a_remedy(error: Exception) -> None:
    with (
        pytest.raises(RecipeError, match=r"= 8: out of memory; use a smaller one.* same"),
        explain_failures(8),
    ):
        raise error


@pytest.mark.promise("101")
def test_the_out_of_memory_message_of_torch_is_recognised() -> None:
    with pytest.raises(RecipeError), explain_failures(1):
        torch.empty(2**60, dtype=torch.uint8)


def test_other_errors_are_not_changed() -> None:
    with pytest.raises(RuntimeError, match="boom"), explain_failures(1):
        raise RuntimeError("boom")


@pytest.mark.slow  # torch's SIGCHLD handler may raise while coverage holds its lock
@pytest.mark.promise("105")
def test_a_killed_worker_is_one_line_and_the_run_resumes(tmp_path: Path) -> None:
    recipe = TRAINING.model_copy(update={"dataloader_num_workers": 1, "save_steps": 2})
    parent = os.getpid()

    def collator(rows: Any) -> Any:
        """Collates in a worker, which is killed at its sixth batch."""
        counted.append(0)
        if len(counted) == 6 and os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return collate(rows)

    from hf_lm.data.collator import collate

    counted: list[int] = []
    trainer = make_trainer(tmp_path, [], recipe=recipe, collator=collator, blocks=make_blocks())
    with (
        pytest.raises(DataError, match=r"num_workers: a worker was killed, .* use fewer"),
        explain_failures(8),
    ):
        trainer.train_from(None)
    assert CheckpointStore(tmp_path).latest_valid()


@pytest.mark.promise("105")
@pytest.mark.parametrize("error", [ConnectionResetError("reset"), EOFError()])
def test_a_killed_worker_noticed_by_its_connection_gives_the_same_line(
    error: Exception,
) -> None:
    def tell(number: int, frame: Any) -> None:
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")

    before = signal.signal(signal.SIGALRM, tell)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        with pytest.raises(DataError, match="a worker was killed"), explain_failures(8):
            raise error
    finally:
        signal.signal(signal.SIGALRM, before)
    with pytest.raises(type(error)), explain_failures(8):  # of nobody's worker
        raise error


class Failing(TrainerCallback):
    """A tracker whose server is gone."""

    def __init__(self) -> None:
        self.calls = 0

    def on_log(self, *args: Any, **options: Any) -> None:
        """Fails."""
        self.calls += 1
        raise ConnectionError("server gone")


@pytest.mark.promise("106")
def test_a_failing_tracker_is_reported_once_and_training_continues(tmp_path: Path) -> None:
    said: list[str] = []
    callback = Failing()
    trainer = make_trainer(tmp_path, [])
    trainer.add_callback(callback)
    isolate_tracker(callback, notify=said.append)
    trainer.train_from(None)
    assert trainer.state.global_step == TRAINING.max_steps
    assert said == ["Failing: ConnectionError: server gone; training continues without it"]
    assert callback.calls == 1
