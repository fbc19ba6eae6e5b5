"""Tokenizers as people publish them: their beginning of a text, their files, their gaps."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
)

from hf_lm import cli
from hf_lm.recipe import load_recipe
from hf_lm.run import main
from hf_lm.tokenizer import PreTrainedTokenizerFast, document_prefix, load_tokenizer, train_bpe
from hf_lm.workflows.evaluate import evaluate
from recipes import CORPUS

SHAPE = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 32,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
SHORT = {"training__max_steps": 2, "tokenizer": {}, "model": {}}


def bpe(*added: str) -> Tokenizer:
    """Train a small byte-level tokenizer with further special tokens."""
    backend = train_bpe([CORPUS.read_text()], vocab_size=300)
    backend.add_special_tokens(list(added))
    return backend


def publish(config: type[PreTrainedConfig], folder: Path) -> Path:
    """Publish a random model whose tokenizer begins each text with a BOS."""
    backend = bpe("<bos>", "<eos>")
    bos, eos = (backend.token_to_id(token) for token in ("<bos>", "<eos>"))
    backend.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", bos)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>"
    )
    torch.manual_seed(1)
    made = config(
        vocab_size=backend.get_vocab_size(),
        bos_token_id=bos,
        eos_token_id=eos,
        pad_token_id=eos,
        **SHAPE,
    )
    model = AutoModelForCausalLM.from_config(made)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


TEXT = "The loss of a run is the mean over its tokens."


@pytest.mark.parametrize("config", [LlamaConfig, GemmaConfig])
def test_the_loss_of_a_text_is_that_of_transformers_with_its_bos(
    config: type[PreTrainedConfig], tmp_path: Path
) -> None:
    base = publish(config, tmp_path / "base")
    (tmp_path / "text.txt").write_text(TEXT)
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(base),
        AutoTokenizer.from_pretrained(base),
    )
    ids = tokenizer(TEXT, return_tensors="pt")["input_ids"]
    assert ids[0, 0] == tokenizer.bos_token_id
    ids = torch.cat([ids, torch.tensor([[tokenizer.eos_token_id]])], dim=1)
    with torch.no_grad():
        expected = float(model(ids, labels=ids).loss)
    found = evaluate(base, source=tmp_path / "text.txt")
    assert found["loss"] == pytest.approx(expected, abs=1e-5)
    assert found["tokens"] == ids.shape[1] - 1
    bits = expected * (ids.shape[1] - 1) / math.log(2) / len(TEXT.encode())
    assert found["bits_per_byte"] == pytest.approx(bits, abs=1e-5)


def test_documents_of_a_run_begin_with_bos_and_it_is_not_predicted(
    write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    base = publish(LlamaConfig, tmp_path / "base")
    recipe = write_recipe(**SHORT, evaluation__max_blocks=None, data__source="corpus/00*.txt")
    assert main([str(recipe), "--from", str(base)]) == 0
    run, tokenizer = tmp_path / "run", AutoTokenizer.from_pretrained(base)
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    provenance = json.loads((run / "provenance.json").read_text())["text"]["validation"]
    model = AutoModelForCausalLM.from_pretrained(base)
    loaded = load_recipe(recipe, pretrained=str(base))
    from hf_lm.data.load import load_blocks, load_documents
    from hf_lm.data.text.sources import find_corpus

    text = load_documents(loaded.data, find_corpus(loaded.data))
    blocks = load_blocks(loaded.data, text, tokenizer, seed=loaded.seed).splits["validation"]
    ids = torch.from_numpy(np.stack([row["input_ids"] for row in blocks]).astype(np.int64))
    bos = tokenizer.bos_token_id
    assert (ids == bos).sum() in (provenance["documents"], provenance["documents"] - 1)
    with torch.no_grad():
        logits = model(ids[:, :-1]).logits
    targets = torch.where(ids[:, 1:] == bos, -100, ids[:, 1:])
    expected = functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    assert rows[0]["eval_loss"] == pytest.approx(float(expected), abs=1e-5)


def test_generation_gets_the_ids_that_transformers_gives(tmp_path: Path) -> None:
    base = publish(LlamaConfig, tmp_path / "base")
    from hf_lm.evaluation.generate import prompt_ids

    tokenizer = AutoTokenizer.from_pretrained(base)
    assert prompt_ids(tokenizer, "def ", limit=99) == tokenizer("def ")["input_ids"]
    assert prompt_ids(tokenizer, "", limit=99) == [tokenizer.bos_token_id]
    assert document_prefix(tokenizer) == [tokenizer.bos_token_id]


def test_a_character_without_a_token_is_one_line_before_training(
    write_recipe: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    char = {"train": {"kind": "char"}}
    assert main([str(write_recipe(tokenizer=char, evaluation__prompts=["a ☃"]))]) == 2
    shown = capsys.readouterr()
    assert "prompt 'a ☃': the tokenizer cannot encode it: it has no token for '☃'" in shown.err
    assert (
        "step" not in shown.out.split("tokenize")[-1].split("step  ")[0]
        or "step 1" not in shown.out
    )
    assert main([str(write_recipe(tokenizer=char))]) == 0
    (tmp_path / "new.txt").write_text("what is ☃ here\n" * 20)
    capsys.readouterr()
    model = str(tmp_path / "run" / "model")
    assert cli.main(["evaluate", model, "--source", str(tmp_path / "new.txt")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "character '☃' (U+2603), in the text 'what is ☃ here" in line
    tuned = write_recipe(**SHORT, data__source="new.txt", output_dir="tuned")
    assert main([str(tuned), "--from", model]) == 2
    assert "character '☃' (U+2603)" in capsys.readouterr().err


@pytest.mark.parametrize("files", ["tokenizer.json", "vocab.json and merges.txt"])
def test_files_of_the_tokenizers_library_are_loaded(files: str, tmp_path: Path) -> None:
    backend, folder = bpe(), tmp_path / "tokenizer"
    folder.mkdir()
    if files == "tokenizer.json":
        backend.save(str(folder / files))
    else:
        backend.model.save(str(folder))
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer("The run")["input_ids"] == backend.encode("The run").ids
    assert tokenizer.eos_token == "<|endoftext|>"


def test_a_tokenizer_without_eos_gets_one_by_name_and_embeddings_grow(
    write_recipe: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, backend = (
        tmp_path / "base",
        Tokenizer(models.BPE({c: n for n, c in enumerate("ab cd")}, [])),
    )
    backend = train_bpe([CORPUS.read_text()], vocab_size=300)
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(base)
    shape = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
    AutoModelForCausalLM.from_config(
        GPT2Config(vocab_size=300, bos_token_id=None, eos_token_id=None, **shape)
    ).save_pretrained(base)
    command = [str(write_recipe(**SHORT)), "--from", str(base)]
    assert main(command) == 2
    assert "name one in tokenizer.eos_token" in capsys.readouterr().err
    assert main([*command, "--set", "tokenizer.eos_token=<end>"]) == 0
    model = tmp_path / "run" / "model"
    assert AutoTokenizer.from_pretrained(model).eos_token_id == 300
    assert AutoModelForCausalLM.from_pretrained(model).config.vocab_size == 301
    assert json.loads((model / "generation_config.json").read_text())["eos_token_id"] == 300


def test_a_vocabulary_with_gaps_keeps_its_largest_id(
    write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    vocabulary = {
        token: 70_000 + n
        for n, token in enumerate(["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet())])
    }
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.add_special_tokens([AddedToken("<|endoftext|>", special=True)])
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>").save_pretrained(
        tmp_path / "gaps"
    )
    recipe = write_recipe(tokenizer={"pretrained": "gaps"}, training__max_steps=2)
    assert main([str(recipe)]) == 0
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert config["vocab_size"] == 70_000 + 257


def test_a_text_shorter_than_the_context_is_evaluated_whole(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "short.txt").write_text("The mean over all tokens of a run, and no more than that.")
    command = ["evaluate", str(tiny_run / "model"), "--source", str(tmp_path / "short.txt")]
    assert cli.main(command) == 0
    assert "bits per byte" in capsys.readouterr().out
    (tmp_path / "short.txt").write_text("run")
    assert cli.main(command) == 0
