"""A signal is heeded wherever it comes: no finalizer, no library and no gap swallows it."""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import LIMIT, run_of

pytestmark = pytest.mark.slow


def send() -> None:
    """SIGTERM to this process, now."""
    os.kill(os.getpid(), signal.SIGTERM)


class Sends:
    """Gets the signal while it is deleted, where Python ignores what is raised."""

    def __del__(self) -> None:
        send()


def in_a_finalizer(recipe: Path) -> None:
    """The signal comes in a `__del__`, as that of filelock's locks, before training."""
    from hf_lm import run
    from hf_lm.data import load as dataset

    find_corpus = dataset.find_corpus

    def find(*args: Any, **options: Any) -> Any:
        Sends()
        return find_corpus(*args, **options)

    dataset.find_corpus = find
    sys.exit(run.main([str(recipe)]))


def in_a_loader(recipe: Path) -> None:
    """It comes in a library whose every exception is taken for bad input."""
    from hf_lm import run
    from hf_lm.model import build as model

    class Loader(model.AutoModelForCausalLM):
        @classmethod
        def from_pretrained(cls, *args: Any, **options: Any) -> Any:
            send()
            return super().from_pretrained(*args, **options)

    model.AutoModelForCausalLM = Loader
    sys.exit(run.main([str(recipe)]))


def behind_the_last_look(recipe: Path) -> None:
    """It comes when training has looked for signals for the last time."""
    from hf_lm import run
    from hf_lm.training.resumable_trainer import ResumableTrainer

    all_reduce_max = ResumableTrainer.all_reduce_max

    def late(self: ResumableTrainer, number: int) -> int:
        found = all_reduce_max(self, number)
        if sys._getframe(1).f_code.co_name == "train_from":
            send()
        return found

    ResumableTrainer.all_reduce_max = late
    sys.exit(run.main([str(recipe)]))


@pytest.mark.promise("T3", "90")
@pytest.mark.parametrize("target", [in_a_finalizer, in_a_loader, behind_the_last_look])
def test_a_signal_is_heeded_wherever_it_comes(
    target: Callable[[Path], None], tmp_path: Path
) -> None:
    run = run_of(tmp_path, "run", "prepared", tmp_path / "home")
    run.target = target
    process = run.start()
    process.join(LIMIT)
    assert process.exitcode == 143, run.tail()
    status = run.folder / "status.json"
    assert not status.exists() or json.loads(status.read_text())["state"] == "stopped"
