"""Fixtures, and an environment that is offline and has a temporary HF_HOME.

The environment is set before any Hugging Face library is imported.
"""

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
# Worker processes that each use all threads would wait for each other.
if "PYTEST_XDIST_WORKER" in os.environ:
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

# A process started by nohup, or by & in a shell, ignores these signals.
for number in (getattr(signal, "SIGHUP", signal.SIGINT), signal.SIGINT):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def _remove_home() -> Iterator[None]:
    yield
    shutil.rmtree(HOME, ignore_errors=True)


@pytest.fixture
def write_recipe(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes the tiny recipe with changes, and its corpus."""

    def write(**changes: Any) -> Path:
        write_corpus(tmp_path / "corpus")
        dotted = {key.replace("__", "."): value for key, value in changes.items()}
        path = tmp_path / "recipe.json"
        path.write_text(json.dumps(merged(TINY, dotted)), encoding="utf-8")
        return path

    return write


@pytest.fixture
def run_recipe() -> Callable[..., CompletedProcess[str]]:
    """Return a function that runs a recipe in a subprocess, which has to exit with `code`.

    Keyword arguments change environment variables; None removes one.
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
    """Return a function that makes a run that ended at `step` look as if it was stopped before."""

    def undo(folder: Path, step: int) -> None:
        shutil.rmtree(folder / f"checkpoint-{step}")
        shutil.rmtree(folder / "model")
        (folder / "status.json").write_text('{"state": "stopped", "reason": ""}')

    return undo


@pytest.fixture
def resumes_exactly(
    write_recipe: Callable[..., Path], undo_end: Callable[[Path, int], None], tmp_path: Path
) -> Callable[..., Path]:
    """Return a function that compares an uninterrupted run with one that was stopped and resumed.

    Both runs have to end with the same weights, bit for bit. The function returns the folder of the
    uninterrupted one.
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
    """Train the tiny recipe, and return the folder of the run."""
    from hf_lm.recipe import load_recipe
    from hf_lm.run import train

    folder = tmp_path_factory.mktemp("tiny")
    write_corpus(folder / "corpus")
    (folder / "recipe.json").write_text(json.dumps(TINY), encoding="utf-8")
    train(load_recipe(folder / "recipe.json"))
    return folder / "run"
