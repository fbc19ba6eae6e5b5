"""Measure the time to import the package, to show `--help`, and to reject a recipe with a mistake.

    python benchmarks/start.py --rounds 15

Each command runs in its own process, in turn with an interpreter that does nothing; the start of
the interpreter is part of every time. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MISTAKE = {
    "data": {"source": "corpus/", "blok_size": 256},
    "training": {"max_steps": 100},
}


def seconds(command: list[str], exit_code: int) -> float:
    """Run a command, check its exit code, and return its duration in seconds."""
    began = time.perf_counter()
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    duration = time.perf_counter() - began
    assert done.returncode == exit_code, done.stderr
    return duration


def main() -> None:
    """Measure the commands in turn and print medians in seconds."""
    parser = argparse.ArgumentParser(description="Time importing, --help and a bad recipe.")
    parser.add_argument("--rounds", type=int, default=15, help="runs of each command (15)")
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "recipe.json"
        recipe.write_text(json.dumps(MISTAKE))
        commands = {
            "python": ([sys.executable, "-c", ""], 0),
            "import hf_lm": ([sys.executable, "-c", "import hf_lm"], 0),
            "--help": ([sys.executable, "-m", "hf_lm.run", "--help"], 0),
            "bad recipe": ([sys.executable, "-m", "hf_lm.run", str(recipe)], 2),
        }
        times: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(rounds + 1):
            for name, (command, exit_code) in commands.items():
                times[name].append(seconds(command, exit_code))
    # The first run of each fills the caches of the disk.
    medians = {name: statistics.median(runs[1:]) for name, runs in times.items()}
    for name, median in medians.items():
        print(f"{name:<14} {median:.3f} s")
    print(json.dumps(medians))


if __name__ == "__main__":
    main()
