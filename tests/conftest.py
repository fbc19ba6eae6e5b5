"""Offline, in a temporary home, before anything of Hugging Face is imported."""

import os
import tempfile

HOME = tempfile.mkdtemp(prefix="hf_lm-tests-")
os.environ.update(
    HF_HOME=HOME,
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_DATASETS_DISABLE_PROGRESS_BARS="1",
    TOKENIZERS_PARALLELISM="false",
    COLUMNS="200",
)
if "PYTEST_XDIST_WORKER" in os.environ:  # two processes with all threads each wait for each other
    os.environ["OMP_NUM_THREADS"] = "1"
for name in ("HF_DATASETS_CACHE", "ACCELERATE_MIXED_PRECISION", "WORLD_SIZE", "RANK"):
    os.environ.pop(name, None)

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from recipes import TINY, merged, write_corpus

for number in (signal.SIGHUP, signal.SIGINT):  # nohup, or a shell's &, has them ignored
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def _remove_home() -> Iterator[None]:
    yield
    shutil.rmtree(HOME, ignore_errors=True)


@pytest.fixture
def write_recipe(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes the tiny recipe with changes beside a corpus; returns its path."""

    def write(**changes: Any) -> Path:
        write_corpus(tmp_path / "corpus")
        dotted = {key.replace("__", "."): value for key, value in changes.items()}
        path = tmp_path / "recipe.json"
        path.write_text(json.dumps(merged(TINY, dotted)), encoding="utf-8")
        return path

    return write


@pytest.fixture
def run_recipe() -> Callable[..., CompletedProcess[str]]:
    """A function that runs a recipe in a process of its own, which has to end with `code`.

    A variable given as None is taken out of the environment.
    """

    def run(
        *arguments: str | Path,
        launcher: tuple[str, ...] = (sys.executable,),
        module: str = "hf_lm.run",
        code: int = 0,
        **changes: str | None,
    ) -> CompletedProcess[str]:
        environment = {**os.environ, **changes}
        done = subprocess.run(
            [*launcher, "-m", module, *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=300,
            env={name: value for name, value in environment.items() if value is not None},
            check=False,
        )
        assert done.returncode == code, done.stderr
        return done

    return run


@pytest.fixture
def undo_end() -> Callable[[Path, int], None]:
    """A function that makes a run which ended at `step` look stopped on the way there."""

    def undo(folder: Path, step: int) -> None:
        shutil.rmtree(folder / f"checkpoint-{step}")
        shutil.rmtree(folder / "model")
        (folder / "status.json").write_text('{"state": "stopped", "reason": ""}')

    return undo


@pytest.fixture
def resumes_exactly(
    write_recipe: Callable[..., Path], undo_end: Callable[[Path, int], None], tmp_path: Path
) -> Callable[..., Path]:
    """A function that runs a recipe once whole, and once stopped before `step` and continued.

    Both have to end in the same bits; it returns the folder of the whole run.
    """

    def check(run: Callable[[Path], Any], step: int, **changes: Any) -> Path:
        path = tmp_path
        for name in ("whole", "broken"):
            path = write_recipe(**changes, output_dir=name)
            run(path)
        undo_end(tmp_path / "broken", step)
        run(path)
        weights = [
            (tmp_path / name / "model" / "model.safetensors").read_bytes()
            for name in ("whole", "broken")
        ]
        assert weights[0] == weights[1]
        return tmp_path / "whole"

    return check


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of the tiny recipe."""
    from hf_lm.recipe import load_recipe
    from hf_lm.run import train

    folder = tmp_path_factory.mktemp("tiny")
    write_corpus(folder / "corpus")
    (folder / "recipe.json").write_text(json.dumps(TINY), encoding="utf-8")
    train(load_recipe(folder / "recipe.json"))
    return folder / "run"
