"""A signal stops the run at any moment: in a finalizer, in a library, or late in training."""

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
    """Send SIGTERM to this process."""
    os.kill(os.getpid(), signal.SIGTERM)


class Sends:
    """Sends the signal while it is deleted, when Python ignores exceptions."""

    def __del__(self) -> None:
        send()


def in_a_finalizer(recipe: Path) -> None:
    """Send the signal in a `__del__` before training, as that of filelock's locks."""
    from hf_lm import run
    from hf_lm.data.text import sources

    find_corpus = sources.find_corpus

    def find(*args: Any, **options: Any) -> Any:
        Sends()
        return find_corpus(*args, **options)

    sources.find_corpus = find
    sys.exit(run.main([str(recipe)]))


def in_a_loader(recipe: Path) -> None:
    """Send it in a library call whose exceptions are all reported as bad input."""
    from hf_lm import run
    from hf_lm.model import pretrained

    class Loader(pretrained.AutoModelForCausalLM):
        @classmethod
        def from_pretrained(cls, *args: Any, **options: Any) -> Any:
            send()
            return super().from_pretrained(*args, **options)

    pretrained.AutoModelForCausalLM = Loader
    sys.exit(run.main([str(recipe)]))


def after_the_last_check(recipe: Path) -> None:
    """Send it after training has checked for signals for the last time."""
    from hf_lm import run
    from hf_lm.training.resumable_trainer import ResumableTrainer

    all_reduce_max = ResumableTrainer.all_reduce_max

    def late(self: ResumableTrainer, number: int) -> int:
        maximum = all_reduce_max(self, number)
        if sys._getframe(1).f_code.co_name == "train_from":
            send()
        return maximum

    ResumableTrainer.all_reduce_max = late
    sys.exit(run.main([str(recipe)]))


@pytest.mark.promise("T3", "90")
@pytest.mark.parametrize("target", [in_a_finalizer, in_a_loader, after_the_last_check])
def test_a_signal_stops_the_run_at_any_moment(
    target: Callable[[Path], None], tmp_path: Path
) -> None:
    run = run_of(tmp_path, "run", "prepared", tmp_path / "home")
    run.target = target
    process = run.start()
    process.join(LIMIT)
    assert process.exitcode == 143, run.tail()
    status = run.folder / "status.json"
    assert not status.exists() or json.loads(status.read_text())["state"] == "stopped"
