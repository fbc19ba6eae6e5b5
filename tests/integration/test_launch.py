"""Run recipes with launchers and with several processes."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from recipes import CORPUS

pytestmark = pytest.mark.slow

LAUNCH = (str(Path(sys.executable).with_name("accelerate")), "launch")
ROOT = Path(__file__).parents[2]


def processes(count: int) -> dict[str, Any]:
    """Return the arguments of run_recipe that start some processes on this CPU."""
    launcher = (sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(count))
    return {"launcher": launcher, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}


TWO = processes(2)


def rows(folder: Path) -> list[dict[str, Any]]:
    """Read the rows of a log."""
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def weights(folder: Path) -> bytes:
    """Read the bytes of the finished model."""
    return (folder / "model" / "model.safetensors").read_bytes()


def test_a_launched_run_uses_all_cores_and_shows_no_progress_bars_of_datasets(
    write_recipe: Callable[..., Path],
    run_recipe: Callable[..., CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    unset = {"OMP_NUM_THREADS": None, "HF_DATASETS_DISABLE_PROGRESS_BARS": None}
    done = run_recipe(write_recipe(), launcher=LAUNCH, **unset)
    assert "examples/s" not in done.stderr
    provenance = json.loads((tmp_path / "run" / "provenance.json").read_text())
    from hf_lm.system.processes import usable_cores

    assert provenance["threads"] == usable_cores(physical=True)


def test_the_shipped_accelerate_file_runs(
    write_recipe: Callable[..., Path], run_recipe: Callable[..., CompletedProcess[str]]
) -> None:
    file = str(ROOT / "accelerate_config.yaml")
    run_recipe(write_recipe(), launcher=(*LAUNCH, "--config_file", file))


@pytest.mark.parametrize("count", [2, 4])
def test_several_processes_give_the_losses_of_one_over_the_ends_of_epochs(
    count: int,
    write_recipe: Callable[..., Path],
    run_recipe: Callable[..., CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    changes = {
        "training__logging_steps": 1,
        "training__micro_batch_size": 4,
        "training__max_steps": None,
        "training__max_epochs": 3,
        "data__source": "corpus/00*.txt",
    }
    run_recipe(write_recipe(output_dir="one", **changes))
    run_recipe(write_recipe(output_dir="many", **changes), **processes(count))
    one, many = rows(tmp_path / "one"), rows(tmp_path / "many")
    blocks = json.loads((tmp_path / "one" / "provenance.json").read_text())["text"]["train"]
    assert blocks["blocks"] % 8  # the last step of an epoch is not whole
    assert [row["step"] for row in one] == [row["step"] for row in many]
    for first, second in zip(one, many, strict=True):
        assert first.keys() == second.keys()
        assert first["tokens"] == second["tokens"]
        for name in {"loss", "grad_norm", "eval_loss", "eval_bits_per_byte"} & set(first):
            assert first[name] == pytest.approx(second[name], rel=1e-5), name
    metrics = [json.loads((tmp_path / n / "metrics.json").read_text()) for n in ("one", "many")]
    assert metrics[0]["loss"] == pytest.approx(metrics[1]["loss"], rel=1e-5)
    assert metrics[0]["train_tokens"] == metrics[1]["train_tokens"]


def test_two_processes_agree_on_the_steps_of_their_minutes(
    write_recipe: Callable[..., Path],
    run_recipe: Callable[..., CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    end = {"training__max_steps": None, "training__max_minutes": 0.1}
    run_recipe(write_recipe(**end, training__save_steps=0.5), **processes(2))
    steps = json.loads((tmp_path / "run" / "provenance.json").read_text())["max_steps"]
    assert rows(tmp_path / "run")[-1]["step"] == steps > 0


def test_a_run_of_two_processes_resumes_bit_for_bit(
    write_recipe: Callable[..., Path],
    run_recipe: Callable[..., CompletedProcess[str]],
    undo_end: Callable[[Path, int], None],
    tmp_path: Path,
) -> None:
    changes = {"training__micro_batch_size": 4, "model__dropout": 0.1}
    run_recipe(write_recipe(output_dir="whole", **changes), **TWO)
    recipe = write_recipe(output_dir="broken", **changes)
    run_recipe(recipe, **TWO)
    undo_end(tmp_path / "broken", 8)
    run_recipe(recipe, **TWO)
    assert weights(tmp_path / "broken") == weights(tmp_path / "whole")


SHORT = {  # two epochs of a small text in a few steps, the second one not whole
    "data.source": str(CORPUS),
    "data.sample_by": "paragraph",
    "training.precision": "fp32",
    "training.max_steps": 16,
    "training.warmup_steps": 2,
    "training.logging_steps": 1,
    "training.eval_steps": 8,
    "training.save_steps": 16,
}
SHIPPED = {  # the recipes that are made for a CPU, with a vocabulary that suits the text
    "small": {"tokenizer.train.vocab_size": 512},
    "small_modern": {"tokenizer.train.vocab_size": 512},
    "shakespeare_char": {"data.revision": None, "data.max_bytes": 15_000},
}


@pytest.mark.parametrize("name", SHIPPED)
def test_two_processes_give_the_losses_of_one_for_the_shipped_recipes(
    name: str, run_recipe: Callable[..., CompletedProcess[str]], tmp_path: Path
) -> None:
    changes = {**SHORT, **SHIPPED[name]}
    options = [f"--set={key}={json.dumps(value)}" for key, value in changes.items()]
    recipe = ROOT / "recipes" / f"{name}.json"
    for folder, launch in (("one", {"OMP_NUM_THREADS": "1"}), ("two", TWO)):
        run_recipe(recipe, *options, f"--set=output_dir={tmp_path / folder}", **launch)
    one, two = rows(tmp_path / "one"), rows(tmp_path / "two")
    text = json.loads((tmp_path / "one" / "provenance.json").read_text())["text"]["train"]
    assert text["blocks"] < 16 * 16  # the run goes over the end of an epoch
    assert [row["tokens"] for row in one] == [row["tokens"] for row in two]
    for first, second in zip(one, two, strict=True):
        for key in {"loss", "eval_loss", "eval_bits_per_byte"} & set(first):
            assert first[key] == pytest.approx(second[key], rel=1e-6), (first["step"], key)
