"""The launcher, several processes, and a kill at any moment."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

LAUNCH = [str(Path(sys.executable).with_name("accelerate")), "launch"]
TWO = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
ROOT = Path(__file__).parents[2]


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command that has to succeed."""
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **environment},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


def rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of a log."""
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def weights(folder: Path) -> bytes:
    """The bytes of the finished model."""
    return (folder / "model" / "model.safetensors").read_bytes()


def test_the_launcher_leaves_all_cores_to_the_run(
    write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    subprocess.run(
        [*LAUNCH, "-m", "hf_lm.run", str(write_recipe())],
        check=True,
        env=environment,
        timeout=300,
        capture_output=True,
    )
    found = json.loads((tmp_path / "run" / "provenance.json").read_text())
    from hf_lm.machine import available_cores

    assert found["threads"] == available_cores()


def test_the_shipped_accelerate_file_runs(write_recipe: Callable[..., Path]) -> None:
    file = str(ROOT / "accelerate_config.yaml")
    run(*LAUNCH, "--config_file", file, "-m", "hf_lm.run", str(write_recipe()))


def test_two_processes_give_the_losses_of_one(
    write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    changes = {"training__logging_steps": 1, "training__micro_batch_size": 4}
    run(sys.executable, "-m", "hf_lm.run", str(write_recipe(output_dir="one", **changes)))
    recipe = str(write_recipe(output_dir="two", **changes))
    run(*TWO, "-m", "hf_lm.run", recipe, ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1")
    one, two = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert [row["step"] for row in one] == [row["step"] for row in two]
    for first, second in zip(one, two, strict=True):
        assert first.keys() == second.keys()
        for name in {"loss", "grad_norm", "eval_loss", "eval_bits_per_byte", "tokens"} & set(first):
            assert first[name] == pytest.approx(second[name], rel=1e-5), name
    metrics = [json.loads((tmp_path / n / "metrics.json").read_text()) for n in ("one", "two")]
    assert metrics[0]["loss"] == pytest.approx(metrics[1]["loss"], rel=1e-5)
    assert metrics[0]["tokens"] == metrics[1]["tokens"]


def test_a_run_of_two_processes_resumes_exactly(
    write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    changes = {"training__micro_batch_size": 4, "model__dropout": 0.1}
    command = [*TWO, "-m", "hf_lm.run"]
    environment = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    run(*command, str(write_recipe(output_dir="whole", **changes)), **environment)
    recipe = str(write_recipe(output_dir="broken", **changes))
    run(*command, recipe, **environment)
    shutil.rmtree(tmp_path / "broken" / "checkpoint-8")
    (tmp_path / "broken" / "status.json").write_text('{"state": "stopped"}')
    run(*command, recipe, **environment)
    assert weights(tmp_path / "broken") == weights(tmp_path / "whole")


def test_a_run_killed_at_random_moments_ends_in_the_same_bits(
    write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    changes = {"training__max_steps": 400, "training__save_steps": 40, "training__eval_steps": 90}
    run(sys.executable, "-m", "hf_lm.run", str(write_recipe(output_dir="whole", **changes)))
    recipe = str(write_recipe(output_dir="broken", **changes))
    chance, log = random.Random(5), tmp_path / "broken" / "log.jsonl"
    for _ in range(3):
        child = subprocess.Popen(
            [sys.executable, "-m", "hf_lm.run", recipe],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        size = log.stat().st_size if log.is_file() else 0
        while child.poll() is None and not (log.is_file() and log.stat().st_size > size + 300):
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.3))
        child.send_signal(signal.SIGKILL)
        child.wait()
    run(sys.executable, "-m", "hf_lm.run", recipe)
    assert weights(tmp_path / "broken") == weights(tmp_path / "whole")
