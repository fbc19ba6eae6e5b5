"""The losses of a shipped recipe equal the recorded ones.

A change of the computation changes them. In that case run `python tests/integration/test_golden.py`
to record them again, and give the losses before and after in the commit message.
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
    # The same text with every Python version, unlike the source of the recipe.
    f"data.source={ROOT / 'tests' / 'fixtures' / 'corpus.txt'}",
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
    """Return the command-line arguments for the first 20 steps of recipes/small.json."""
    changes = (*CHANGES, f"output_dir={folder}")
    return [RECIPE, *(word for change in changes for word in ("--set", change))]


def losses(folder: Path) -> list[float]:
    """Read the loss of each step of a run."""
    rows = (json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines())
    return [row["loss"] for row in rows if "loss" in row]


def test_the_first_losses_of_the_small_recipe_equal_the_recorded_ones(
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
        recorded = {"versions": versions, "losses": losses(folder)}
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps(recorded, indent=1) + "\n")
