"""What a published model has is kept, or its change is told."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, OPTConfig, Qwen3Config

from hf_lm.model.pretrained import dropout_fields
from hf_lm.run import main

SHORT = {"training__max_steps": 2, "tokenizer": {}, "model": {}}


def publish(tiny_run: Path, folder: Path, **changes: Any) -> Path:
    """Save the tiny model again as others publish models; return the folder."""
    model = AutoModelForCausalLM.from_pretrained(tiny_run / "model", **changes)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_run / "model").save_pretrained(folder)
    return folder


def set_json(path: Path, **values: Any) -> None:
    """Set values of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(("setting", "dtype"), [("auto", torch.bfloat16), ("fp32", torch.float32)])
def test_a_model_is_saved_in_the_type_of_its_base(
    setting: str,
    dtype: torch.dtype,
    write_recipe: Callable[..., Path],
    tiny_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base = publish(tiny_run, tmp_path / "base", dtype=torch.bfloat16)
    recipe = write_recipe(**{**SHORT, "model": {"save_dtype": setting}})
    assert main([str(recipe), "--from", str(base)]) == 0
    model = tmp_path / "run" / "model"
    assert {w.dtype for w in load_file(model / "model.safetensors").values()} == {dtype}
    assert json.loads((model / "config.json").read_text())["dtype"] == str(dtype)[6:]
    assert ("the model is saved in bfloat16" in capsys.readouterr().out) == (setting == "auto")
    checkpoint = load_file(tmp_path / "run" / "checkpoint-2" / "model.safetensors")
    assert {w.dtype for w in checkpoint.values()} == {torch.float32}


def test_tokens_that_end_a_text_and_settings_of_sampling_are_kept(
    write_recipe: Callable[..., Path], tiny_run: Path, tmp_path: Path
) -> None:
    base = publish(tiny_run, tmp_path / "base")
    set_json(base / "config.json", eos_token_id=[0, 7])
    set_json(
        base / "generation_config.json", eos_token_id=[0, 7, 9], temperature=0.6, do_sample=True
    )
    assert main([str(write_recipe(**SHORT)), "--from", str(base)]) == 0
    model = tmp_path / "run" / "model"
    generation = json.loads((model / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [0, 7, 9]
    assert (generation["temperature"], generation["do_sample"]) == (0.6, True)
    assert json.loads((model / "config.json").read_text())["eos_token_id"] == [0, 7]


def test_dropout_of_a_base_is_set_and_told(
    write_recipe: Callable[..., Path],
    tiny_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base = publish(tiny_run, tmp_path / "base")
    set_json(base / "config.json", resid_pdrop=0.1, attn_pdrop=0.2)
    command = [str(write_recipe(**SHORT)), "--from", str(base)]
    for options in (["--check"], []):
        assert main([*command, *options]) == 0
        out = " ".join(capsys.readouterr().out.split())
        assert "resid_pdrop = 0.1" in out
        assert "attn_pdrop = 0.2" in out
        assert "is 0 in this run (model.dropout)" in out
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert (config["resid_pdrop"], config["attn_pdrop"]) == (0, 0)


def test_dropout_fields_are_found_whatever_they_are_called() -> None:
    assert dropout_fields(OPTConfig()).keys() == {"dropout", "attention_dropout"}
    assert dropout_fields(Qwen3Config()).keys() == {"attention_dropout"}


def test_a_pickled_model_is_refused_with_the_way_to_convert_it(
    write_recipe: Callable[..., Path],
    tiny_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base = publish(tiny_run, tmp_path / "base")
    torch.save(load_file(base / "model.safetensors"), base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    assert main([str(write_recipe(**SHORT)), "--from", str(base)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "holds pytorch_model.bin alone, a pickle" in line
    assert ".save_pretrained(" in line
