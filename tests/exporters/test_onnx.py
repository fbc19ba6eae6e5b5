"""What is exported says what the model says, or is not there."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from onnxruntime import InferenceSession
from texts import tokenizer_of
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_lm.cli import main
from hf_lm.errors import RecipeError
from hf_lm.exporters import onnx as export
from hf_lm.exporters.onnx_session import CachedSession
from recipes import TINY, merged, write_corpus
from tests.exporters.test_gguf import saved


def trained(folder: Path, family: str) -> Path:
    """The model of a short run."""
    write_corpus(folder / "corpus")
    changes = {"model.family": family, "training.max_steps": 2}
    (folder / "recipe.json").write_text(json.dumps(merged(TINY, changes)))
    assert main(["run", str(folder / "recipe.json")]) == 0
    return folder / "run" / "model"


def exported(model: Path, folder: Path, *options: str) -> int:
    """The exit code of an export."""
    return main(["export", str(model), "--to", "onnx", "--output", str(folder), *options])


def greedy(folder: Path, file: str, ids: list[int], shapes: list[tuple[int, int]]) -> list[int]:
    """Twenty tokens that the graph writes, each from one token and the cache."""
    session = CachedSession(folder / "onnx" / file, shapes)
    session.start(1)
    text, new = list(ids), len(ids)
    for _ in range(20):
        positions = np.arange(len(text))[None, -new:]
        mask = np.ones((1, len(text)), np.int64)
        logits = session.run(np.array([text[-new:]]), mask, positions)
        text.append(int(logits[0, -1].argmax()))
        new = 1
    return text[len(ids) :]


@pytest.mark.parametrize("family", ["gpt2", "qwen3", "llama", "arcee"])
def test_a_graph_writes_what_its_model_writes_with_a_cache(
    family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = saved(tmp_path / "model", family, tokenizer_of("byte", []))
    out = tmp_path / "onnx"
    assert exported(model, out) == 0, capsys.readouterr().err
    assert "of the largest, on ONNX Runtime" in capsys.readouterr().out
    session = InferenceSession(out / "onnx" / "model.onnx")
    cache = [f"{i}.{name}" for i in range(2) for name in ("key", "value")]
    assert [value.name for value in session.get_inputs()] == [
        *("input_ids", "attention_mask", "position_ids"),
        *(f"past_key_values.{name}" for name in cache),
    ]
    assert [value.name for value in session.get_outputs()] == [
        "logits",
        *(f"present.{name}" for name in cache),
    ]
    network = AutoModelForCausalLM.from_pretrained(model)
    ids = [5, 6, 7]
    network.generation_config.eos_token_id = None
    answer = network.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=20)
    shapes = export.cache_shapes(network)
    assert greedy(out, "model.onnx", ids, shapes) == answer[0, 3:].tolist()
    vocabularies = [AutoTokenizer.from_pretrained(name).get_vocab() for name in (out, model)]
    assert vocabularies[0] == vocabularies[1]
    assert json.loads((out / "config.json").read_text())["transformers.js_config"] == {
        "dtype": "fp32"
    }
    assert {path.name for path in tmp_path.iterdir()} == {"model", "onnx"}


def test_int8_is_written_where_the_probabilities_stay(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, out = trained(tmp_path, "gpt2"), tmp_path / "onnx"
    assert exported(model, out, "--dtype", "int8") == 0, capsys.readouterr().err
    assert "ONNX Runtime diverges by " in capsys.readouterr().out
    assert [path.name for path in (out / "onnx").iterdir()] == ["model_quantized.onnx"]
    assert json.loads((out / "config.json").read_text())["transformers.js_config"]["dtype"] == "q8"
    operators = {node.op_type for node in onnx.load(out / "onnx/model_quantized.onnx").graph.node}
    assert "MatMulInteger" in operators
    monkeypatch.setattr(export, "MAX_DIVERGENCE", 0.0)
    assert exported(model, tmp_path / "other", "--dtype", "int8") == 2
    assert "nats, and 0 is the most that rounding to int8 explains" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_weights_beyond_the_limit_of_a_file_are_in_a_second_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "LARGEST_FILE", 0)
    model = saved(tmp_path / "model", "gpt2", tokenizer_of("byte", []))
    assert exported(model, tmp_path / "onnx") == 0, capsys.readouterr().err
    names = sorted(path.name for path in (tmp_path / "onnx" / "onnx").iterdir())
    assert names == ["model.onnx", "model.onnx_data"]
    values = json.loads((tmp_path / "onnx" / "config.json").read_text())["transformers.js_config"]
    assert values == {"dtype": "fp32", "use_external_data_format": True}


def test_the_levels_of_logs_are_as_they_were_after_an_export() -> None:
    logs = [logging.getLogger("torch.onnx"), logging.getLogger()]
    before = [log.level for log in logs]
    with export.quiet():
        assert [log.level for log in logs] == [logging.ERROR, logging.ERROR]
    assert [log.level for log in logs] == before


def test_a_model_without_keys_and_values_is_refused() -> None:
    def network(**inputs: object) -> SimpleNamespace:
        return SimpleNamespace(logits=None)

    network.config = SimpleNamespace(model_type="mamba")  # type: ignore[attr-defined]
    with pytest.raises(RecipeError, match="mamba has no cache of keys and values in every layer"):
        export.cache_shapes(network)  # type: ignore[arg-type]


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
