"""The recipe decides over the launcher's file, and a process that fails alone says so."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from hf_lm.recipe import load_recipe
from hf_lm.run import main, train
from hf_lm.system.launch import is_set, use_precision


@pytest.mark.parametrize(
    ("name", "tool"),
    [("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed")],
)
@pytest.mark.parametrize("options", [[], ["--check"]])
def test_sharding_of_the_launcher_is_refused_before_any_work(
    name: str,
    tool: str,
    options: list[str],
    write_recipe: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setenv(name, "true")
    assert main([str(write_recipe()), *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"asks for {tool}" in line
    assert "use DDP" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("value", ["1", "true", "TRUE", "yes", "on"])
def test_a_variable_is_true_for_us_if_it_is_for_accelerate(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate.utils import parse_flag_from_env

    for text in (value, "0", "false", "no"):
        monkeypatch.setenv("ACCELERATE_USE_CPU", text)
        assert is_set("ACCELERATE_USE_CPU") == parse_flag_from_env("ACCELERATE_USE_CPU")


def test_the_recipe_decides_the_precision_and_not_the_launcher(
    write_recipe: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    train(load_recipe(write_recipe(output_dir="plain", training__max_steps=2)))
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")
    capsys.readouterr()
    train(load_recipe(write_recipe(training__max_steps=2)))
    assert "mixed_precision = bf16 is not used; the run computes in fp32" in capsys.readouterr().out
    assert "ACCELERATE_DYNAMO_BACKEND" not in os.environ
    weights = [tmp_path / name / "model" / "model.safetensors" for name in ("plain", "run")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    provenance = json.loads((tmp_path / "run" / "provenance.json").read_text())
    assert provenance["precision"] == "fp32"


def test_a_precision_that_the_launcher_also_has_needs_no_note(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    assert use_precision("bf16") is None
    assert "ACCELERATE_MIXED_PRECISION" not in os.environ
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert use_precision("bf16") is None
    assert os.environ["ACCELERATE_MIXED_PRECISION"] == "bf16"
