"""The losses of a shipped recipe stay what they were.

A change of computation moves them: run `python tests/slow/test_golden.py` then, and give the losses
before and after in the commit.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy
import pytest
import torch
import transformers

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "small_cpu.json"
CHANGES = (
    f"data.source={ROOT / 'tests' / 'data' / 'corpus.txt'}",  # the same text for every interpreter
    "data.sample_by=paragraph",
    "tokenizer.train.vocab_size=512",
    "training.max_steps=20",
    "training.learning_rate=1e-3",
    "training.warmup_steps=5",
    "training.logging_steps=1",
    "training.precision=fp32",
    "training.device=cpu",
)


def losses(folder: Path) -> list[float]:
    """The loss of each of the first 20 steps of recipes/small.json."""
    options = [word for change in (*CHANGES, f"output_dir={folder}") for word in ("--set", change)]
    recipe = str(ROOT / "recipes" / "small.json")
    subprocess.run([sys.executable, "-m", "hf_lm.run", recipe, *options], check=True, timeout=300)
    rows = (json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines())
    return [row["loss"] for row in rows if "loss" in row]


def test_the_first_losses_of_the_small_recipe_are_the_recorded_ones(tmp_path: Path) -> None:
    recorded = json.loads(GOLDEN.read_text())["losses"]
    assert len(recorded) == 20
    assert losses(tmp_path / "run") == pytest.approx(recorded, rel=1e-3)


if __name__ == "__main__":
    versions = {module.__name__: module.__version__ for module in (torch, transformers, numpy)}
    with tempfile.TemporaryDirectory() as name:
        found = {"versions": versions, "losses": losses(Path(name) / "run")}
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
