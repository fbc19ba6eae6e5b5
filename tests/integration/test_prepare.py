"""Kill `hf-lm prepare` at random moments and run it again; run it twice at the same time."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hf_lm.system.files import sha256

pytestmark = pytest.mark.slow

KILLS = 10


def command(path: Path, folder: Path) -> list[str]:
    """Return the command line of `hf-lm prepare`."""
    hf_lm = str(Path(sys.executable).with_name("hf-lm"))
    return [hf_lm, "prepare", str(path), "--output", str(folder)]


def hash_files(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): sha256(path) for path in files}


def write_more(folder: Path) -> None:
    """Write enough text that preparing it takes some seconds."""
    chance = random.Random(0)
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"]
    with (folder / "more.jsonl").open("w") as file:
        for number in range(8_000):
            text = f"{number} " + " ".join(chance.choices(words, k=60))
            file.write(json.dumps({"text": text}) + "\n")


@pytest.mark.promise("6")
def test_prepare_killed_at_ten_random_moments_gives_the_same_files(
    write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    write_more(tmp_path)
    path = write_recipe(data__source="more.jsonl")
    environment = {**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "first")}
    began = time.monotonic()
    subprocess.run(command(path, tmp_path / "whole"), env=environment, check=True)
    seconds = time.monotonic() - began
    expected = hash_files(tmp_path / "whole")
    environment["HF_DATASETS_CACHE"] = str(tmp_path / "second")
    chance, num_killed = random.Random(6), 0
    for _ in range(KILLS):
        process = subprocess.Popen(command(path, tmp_path / "killed"), env=environment)
        time.sleep(chance.uniform(0.4, 1.0) * seconds)
        process.send_signal(signal.SIGKILL)
        num_killed += process.wait() == -signal.SIGKILL
        if (tmp_path / "killed").exists():
            assert hash_files(tmp_path / "killed") == expected  # complete, or not written
    assert num_killed
    subprocess.run(command(path, tmp_path / "killed"), env=environment, check=True)
    assert hash_files(tmp_path / "killed") == expected
    leftovers = [p.name for p in (tmp_path / "second").rglob("*") if ".partial" in p.name]
    assert leftovers == []


@pytest.mark.promise("5")
def test_two_commands_at_once_succeed_and_tokenize_once(
    write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    write_more(tmp_path)
    path = write_recipe(data__source="more.jsonl")
    environment = {**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    processes = [
        subprocess.Popen(
            command(path, tmp_path / name), env=environment, stdout=subprocess.PIPE, text=True
        )
        for name in ("one", "two")
    ]
    printed = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sum("tokenize:" in text for text in printed) == 1
    assert hash_files(tmp_path / "one") == hash_files(tmp_path / "two")
