"""A run that version 0.1.0 wrote before the package had folders goes on to the recorded bits."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from recipes import write_corpus

RECORDED = Path(__file__).parent / "fixtures" / "run_0_1_0"


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    """What that version ended with, and on what."""
    return json.loads((RECORDED / "expected.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder after step 8; the fixture stops at step 4."""
    base = tmp_path_factory.mktemp("recorded")
    write_corpus(base / "corpus")
    shutil.copytree(RECORDED, base / "run", ignore=shutil.ignore_patterns("tiny.json", "expected*"))
    shutil.copy(RECORDED / "tiny.json", base / "tiny.json")
    done = subprocess.run(
        [sys.executable, "-m", "hf_lm.run", str(base / "tiny.json")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return base / "run"


def log_rows(folder: Path, *, last_step: int) -> list[dict[str, Any]]:
    """The rows of log.jsonl up to a step."""
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if row["step"] <= last_step]


def test_it_continues_from_the_recorded_step(resumed: Path) -> None:
    assert log_rows(resumed, last_step=4) == log_rows(RECORDED, last_step=4)
    assert log_rows(resumed, last_step=99)[-1]["step"] == 8


def test_it_ends_in_the_recorded_bits(resumed: Path, expected: dict[str, Any]) -> None:
    metrics = json.loads((resumed / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["loss"] == pytest.approx(expected["loss"], abs=1e-4)
    weights = hashlib.sha256((resumed / "model" / "model.safetensors").read_bytes()).hexdigest()
    version = torch.__version__.partition("+")[0]
    machine = (version, torch.backends.cpu.get_cpu_capability())
    if machine == (expected["torch"], expected["cpu_capability"]):  # others round differently
        assert metrics["loss"] == expected["loss"]
        assert weights == expected["weights_sha256"]
