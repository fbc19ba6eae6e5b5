"""llama.cpp reads what is written, and says what the model says; or nothing is written."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import pytest
import torch
from texts import tokenizer_of
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from hf_lm.cli import main
from hf_lm.exporters import gguf as exporter
from hf_lm.exporters import llama_cpp
from hf_lm.exporters.gguf_vocabulary import PATTERNS, gguf_vocabulary
from recipes import CORPUS

FAMILIES = ("gpt2", "qwen3", "llama", "arcee")
ASCII = ["def f(x):\n    return x + 1  # one\n" * 3, "The quick brown fox; it jumps!"]


def saved(folder: Path, family: str, tokenizer: Any) -> Path:
    """Save a random model whose attention matters, with a tokenizer."""
    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer) + 3,  # as where a vocabulary is padded
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 48,
        "initializer_range": 0.2,
        "bos_token_id": tokenizer.eos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "tie_word_embeddings": family != "llama",
    }
    if family == "gpt2":
        names = ("n_embd", "n_layer", "n_head", "n_positions")
        for name, old in zip(names, list(shape)[1:5], strict=True):
            shape[name] = shape.pop(old)
    else:
        shape |= {"num_key_value_heads": 2, "intermediate_size": 96, "head_dim": 16}
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **shape)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def export(model: Path, folder: Path, *options: str) -> int:
    """Export a model as GGUF and return the exit code."""
    return main(["export", str(model), "--to", "gguf", "--output", str(folder), *options])


@pytest.fixture(scope="module")
def bpe() -> Any:
    """A tokenizer as a recipe trains it."""
    return tokenizer_of("bpe", CORPUS.read_text(encoding="utf-8").split("\n\n"))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "q8_0"])
def test_llama_cpp_has_the_ids_and_the_probabilities_of_the_model(
    family: str, dtype: str, bpe: Any, tmp_path: Path, capsys: Any
) -> None:
    model, out = saved(tmp_path / "model", family, bpe), tmp_path / "gguf"
    assert export(model, out, "--dtype", dtype) == 0, capsys.readouterr().err
    assert "checked  llama.cpp diverges by " in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == ["Modelfile", "model.gguf"]
    assert 'PARAMETER stop "<|endoftext|>"' in (out / "Modelfile").read_text()
    fields = gguf.GGUFReader(out / "model.gguf").fields
    assert fields["tokenizer.ggml.pre"].contents() == "gpt-2"
    assert fields[f"{family}.context_length"].contents() == 48


def test_probabilities_are_compared_as_they_add_up_to_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    logits = torch.linspace(-2, 2, 9)
    rows = [  # of a server whose sum is off by a tenth
        {"id": i, "logprob": float(value) + 0.1} for i, value in enumerate(logits.log_softmax(-1))
    ]
    answer = {"completion_probabilities": [{"top_logprobs": rows}]}
    monkeypatch.setattr(llama_cpp, "ask", lambda *args: answer)

    def model(input_ids: Any) -> Any:
        return SimpleNamespace(logits=logits.expand(1, input_ids.shape[1], -1))

    network: Any = model
    assert llama_cpp.divergence(None, network, [1, 2], word=0) == pytest.approx(0, abs=1e-6)
    rows[3]["logprob"] += 1
    assert llama_cpp.divergence(None, network, [1, 2], word=0) > 0.01


@pytest.mark.parametrize("kind", ["byte", "char"])
def test_byte_and_ascii_character_vocabularies_are_written(
    kind: str, tmp_path: Path, capsys: Any
) -> None:
    model = saved(tmp_path / "model", "gpt2", tokenizer_of(kind, ASCII))
    assert export(model, tmp_path / "gguf") == 0, capsys.readouterr().err


SPLITS = {
    "smollm": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    ),
    **{
        name: pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(pattern), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        for pattern, name in PATTERNS.items()
    },
}


@pytest.mark.parametrize("name", SPLITS)
def test_published_ways_to_split_text_have_their_name(
    name: str, tmp_path: Path, capsys: Any
) -> None:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = SPLITS[name], decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([*ASCII, "year 2026 and 1234567, don't THEY'LL"], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    tokenizer.chat_template = "{{ messages[0].content }}"
    assert export(saved(tmp_path / "model", "llama", tokenizer), tmp_path / "gguf") == 0
    fields = gguf.GGUFReader(tmp_path / "gguf" / "model.gguf").fields
    assert fields["tokenizer.ggml.pre"].contents() == name
    assert fields["tokenizer.ggml.eos_token_id"].contents() == tokenizer.eos_token_id
    assert fields["tokenizer.chat_template"].contents() == tokenizer.chat_template


def test_weights_in_the_wrong_order_are_found(
    bpe: Any, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter, "INTERLEAVED", ())
    model = saved(tmp_path / "model", "llama", bpe)
    assert export(model, tmp_path / "gguf", "--dtype", "q8_0") == 2
    err = capsys.readouterr().err
    assert err.startswith("not written: the probabilities of llama.cpp diverge by ")
    assert not (tmp_path / "gguf").exists()


def test_other_ids_are_found(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tokenizer_of("bpe", ["year 2026 and 1234567, " * 50])
    monkeypatch.setattr("hf_lm.exporters.gguf_vocabulary.split_name", lambda *parts: "smollm")
    assert export(saved(tmp_path / "model", "gpt2", tokenizer), tmp_path / "gguf") == 2
    assert "into other tokens than this tokenizer" in capsys.readouterr().err


def test_without_llama_cpp_the_file_is_written_and_the_user_is_told(
    bpe: Any, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama_cpp, "find_spec", lambda name: None)
    assert export(saved(tmp_path / "model", "gpt2", bpe), tmp_path / "gguf") == 0
    assert "not compared: llama.cpp is not installed" in capsys.readouterr().out


def test_what_cannot_be_written_is_one_line_before_any_work(
    bpe: Any, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = saved(tmp_path / "other", "gpt2", bpe)
    (other / "config.json").write_text('{"model_type": "bloom"}')
    assert export(other, tmp_path / "gguf") == 2
    assert "bloom is not written to GGUF; gpt2, qwen3, llama, arcee are" in capsys.readouterr().err
    model = saved(tmp_path / "model", "gpt2", bpe)
    assert export(model, tmp_path / "model") == 2
    assert "exists already; name a new folder" in capsys.readouterr().err
    assert export(Path("USER/none"), tmp_path / "gguf") == 2
    error = capsys.readouterr().err
    assert "USER/none" in error
    assert "unexpected" not in error
    onnx = ["export", str(model), "--to", "onnx", "--output", str(tmp_path / "o")]
    assert main([*onnx, "--dtype", "f16"]) == 2
    assert "--dtype f16: onnx is written as f32, int8" in capsys.readouterr().err
    monkeypatch.setattr(exporter, "find_spec", lambda name: None)
    assert export(model, tmp_path / "gguf") == 2
    assert capsys.readouterr().err == "export needs gguf; pip install 'hf_lm[gguf]'\n"
    assert importlib.util.find_spec("gguf")


@pytest.mark.parametrize(
    ("backend", "reason"),
    [
        (Tokenizer(models.Unigram([("a", 0.0)], unk_id=0)), "Unigram vocabularies are not written"),
        (Tokenizer(models.BPE({"a": 0}, [])), "its BPE is not of bytes"),
    ],
)
def test_a_tokenizer_that_no_runtime_can_hold_is_named(backend: Tokenizer, reason: str) -> None:
    with pytest.raises(exporter.RecipeError, match=reason):
        gguf_vocabulary(PreTrainedTokenizerFast(tokenizer_object=backend), 1)


def test_characters_of_several_bytes_are_refused() -> None:
    with pytest.raises(exporter.RecipeError, match="such as 'é', are not all of one byte"):
        gguf_vocabulary(tokenizer_of("char", ["café"]), 8)
