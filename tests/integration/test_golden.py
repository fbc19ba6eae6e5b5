"""The losses of a shipped recipe stay what they were.

A change of computation moves them: run `python tests/integration/test_golden.py` then, and
give the losses before and after in the commit.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy
import pytest
import torch
import transformers

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "fixtures" / "golden" / "small_cpu.json"
RECIPE = str(ROOT / "recipes" / "small.json")
CHANGES = (
    f"data.source={ROOT / 'tests' / 'data' / 'corpus.txt'}",  # the same text for every interpreter
    "data.sample_by=paragraph",
    "tokenizer.train.vocab_size=512",
    "training.max_steps=20",
    "training.learning_rate=1e-3",
    "training.warmup_steps=5",
    "training.logging_steps=1",
    "training.precision=fp32",
    "training.compile=false",
    "training.device=cpu",
)


def arguments(folder: Path) -> list[str]:
    """What runs the first 20 steps of recipes/small.json."""
    changes = (*CHANGES, f"output_dir={folder}")
    return [RECIPE, *(word for change in changes for word in ("--set", change))]


def losses(folder: Path) -> list[float]:
    """The loss of each step of a run."""
    rows = (json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines())
    return [row["loss"] for row in rows if "loss" in row]


def test_the_first_losses_of_the_small_recipe_are_the_recorded_ones(
    tmp_path: Path, run_recipe: Callable[..., CompletedProcess[str]]
) -> None:
    recorded = json.loads(GOLDEN.read_text())["losses"]
    assert len(recorded) == 20
    run_recipe(*arguments(tmp_path / "run"))
    assert losses(tmp_path / "run") == pytest.approx(recorded, rel=1e-4)


if __name__ == "__main__":
    versions = {module.__name__: module.__version__ for module in (torch, transformers, numpy)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "run"
        subprocess.run([sys.executable, "-m", "hf_lm.run", *arguments(folder)], check=True)
        found = {"versions": versions, "losses": losses(folder)}
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
