"""What is exported says what the model says, or is not there."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from onnxruntime import InferenceSession
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_lm.cli import main
from hf_lm.exporters import onnx as export
from recipes import TINY, merged, write_corpus


def trained(folder: Path, family: str) -> Path:
    """The model of a short run."""
    write_corpus(folder / "corpus")
    changes = {"model.family": family, "training.max_steps": 2}
    (folder / "recipe.json").write_text(json.dumps(merged(TINY, changes)))
    assert main(["run", str(folder / "recipe.json")]) == 0
    return folder / "run" / "model"


def exported(model: Path, folder: Path) -> int:
    """The exit code of an export."""
    return main(["export", str(model), "--to", "onnx", "--output", str(folder)])


@pytest.mark.parametrize("family", ["gpt2", "qwen3"])
def test_a_graph_gives_the_logits_of_its_model_for_any_batch(
    family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = trained(tmp_path, family), tmp_path / "onnx"
    assert exported(model, out) == 0
    assert "of the largest, on ONNX Runtime" in capsys.readouterr().out
    session = InferenceSession(out / "model.onnx")
    network = AutoModelForCausalLM.from_pretrained(model)
    for batch, length in ((1, 1), (4, 16)):
        ids = torch.arange(batch * length).view(batch, length)
        given = {"input_ids": ids.numpy(), "attention_mask": np.ones_like(ids)}
        with torch.no_grad():
            expected = network(ids).logits.numpy()
        np.testing.assert_allclose(session.run(["logits"], given)[0], expected, atol=1e-5)
    vocabularies = [AutoTokenizer.from_pretrained(name).get_vocab() for name in (out, model)]
    assert vocabularies[0] == vocabularies[1]
    assert {path.name for path in tmp_path.iterdir()} == {"corpus", "onnx", "recipe.json", "run"}


def test_a_graph_with_other_logits_is_not_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, out = trained(tmp_path, "gpt2"), tmp_path / "onnx"
    monkeypatch.setattr(export, "MAX_DIFFERENCE", 0.0)
    assert exported(model, out) == 2
    assert "not written: the logits of ONNX Runtime differ by" in capsys.readouterr().err
    monkeypatch.setattr(export, "PACKAGES", ("onnx", "no_such_runtime"))
    assert exported(model, out) == 2
    assert "export needs no_such_runtime; pip install 'hf_lm[onnx]'" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"corpus", "recipe.json", "run"}
    monkeypatch.undo()
    out.mkdir()
    assert exported(model, out) == 2
    assert f"{out}: exists already; name a new folder" in capsys.readouterr().err
