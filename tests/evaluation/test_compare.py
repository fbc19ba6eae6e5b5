"""Models are compared on the same documents, and a difference is real only beyond chance."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from texts import tokenizer_of, write_jsonl
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_lm.cli import main
from hf_lm.evaluation import compare as comparing
from hf_lm.evaluation.compare import (
    compare_scores,
    paired,
    score_documents,
    verdict,
)
from hf_lm.model.build import build_model
from hf_lm.model.config import Vocabulary
from hf_lm.recipe import ModelRecipe
from hf_lm.workflows.evaluate import compare

TEXTS = [
    "A short one.",
    "Naïve café, über 北京 \U0001f600.",
    "def f(x):\n    return x\n\n" * 40,
    *(f"document {n} of many, with some words. " * (n % 5 + 1) for n in range(20)),
]


def network(vocabulary: int, *, seed: int = 0, positions: int = 32) -> Any:
    """A small network with random weights."""
    recipe = ModelRecipe(n_layer=1, n_head=2, n_embd=16, n_positions=positions)
    return build_model(recipe, Vocabulary(vocabulary, 0, 0), block_size=8, seed=seed).eval()


def nats_of(model: Any, tokenizer: Any, text: str, length: int) -> float:
    """The negative log-likelihood of a text, token by token."""
    ids = [tokenizer.eos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]
    total = 0.0
    for place in range(1, len(ids)):
        start = (place - 1) // length * length
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids[start:place]])).logits[0, -1]
        total += float(functional.cross_entropy(logits[None], torch.tensor([ids[place]])))
    return total


@pytest.mark.parametrize("kind", ["bpe", "byte", "char"])
def test_every_token_of_a_document_is_predicted_once(kind: str) -> None:
    tokenizer = tokenizer_of(kind, TEXTS)
    model = network(len(tokenizer))
    found = score_documents(model, tokenizer, TEXTS)
    expected = [nats_of(model, tokenizer, text, 32) for text in TEXTS]
    assert found.nats == pytest.approx(expected, rel=1e-5)
    lengths = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in TEXTS]
    assert found.tokens == sum(lengths)
    assert found.parameters == sum(p.numel() for p in model.parameters())


def test_a_document_begins_as_the_tokenizer_begins_it(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tokenizer_of("byte", TEXTS)
    model = network(len(tokenizer))
    monkeypatch.setattr(comparing, "document_prefix", lambda tokenizer: [65, 66, 67])
    found = score_documents(model, tokenizer, ["some text"])
    ids = [65, 66, 67, *tokenizer("some text", add_special_tokens=False)["input_ids"]]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids[:-1]])).logits[0]
    nats = functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")
    assert found.nats == pytest.approx([float(nats[2:].sum())], rel=1e-5)
    assert found.tokens == len(ids) - 3


def test_the_size_of_a_batch_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tokenizer_of("byte", TEXTS)
    model = network(len(tokenizer))
    expected = score_documents(model, tokenizer, TEXTS).nats
    monkeypatch.setattr(comparing, "BATCH_TOKENS", 1)
    assert score_documents(model, tokenizer, TEXTS).nats == pytest.approx(expected, rel=1e-6)


def test_a_paired_difference_has_the_error_of_a_ratio_over_documents() -> None:
    chance = np.random.default_rng(0)
    sizes = chance.integers(50, 500, 400)
    differences, errors = [], []
    for _ in range(300):
        nats = math.log(2) * (0.02 * sizes + chance.normal(0, 3, 400))
        difference, error = paired(nats, sizes)
        differences.append(difference)
        errors.append(error)
    assert np.mean(differences) == pytest.approx(0.02, abs=2e-3)
    assert np.mean(errors) == pytest.approx(np.std(differences), rel=0.1)
    assert paired(np.array([3.0]), np.array([10]))[1] is None


def test_verdicts_are_in_words() -> None:
    assert verdict(0.01, 0.02) == "no difference that this text can show"
    assert verdict(0.0, 0.0) == "no difference that this text can show"
    assert verdict(-0.05, 0.02) == "better"
    assert verdict(0.05, 0.02) == "worse"
    assert verdict(0.05, None) == "one document: nothing can be said about chance"


def test_bits_per_byte_do_not_depend_on_the_tokenizer() -> None:
    """A uniform model has log2 of its vocabulary for each token."""
    found = []
    for kind in ("byte", "char"):
        tokenizer = tokenizer_of(kind, TEXTS)
        model = network(len(tokenizer))
        torch.nn.init.zeros_(model.get_output_embeddings().weight)
        scores = score_documents(model, tokenizer, TEXTS)
        sizes = [len(text.encode()) for text in TEXTS]
        (row,) = compare_scores([kind], [scores], sizes).models
        bits = math.log2(len(tokenizer)) * scores.tokens
        assert row.bits_per_byte == pytest.approx(bits / sum(sizes), rel=1e-6)
        found.append(row)
    assert found[0].tokens > found[1].tokens
    assert (found[0].difference, found[0].difference_stderr, found[0].verdict) == (0.0, None, "")


def test_a_model_beside_itself_and_beside_a_worse_one(
    tiny_run: Path, tmp_path: Path, capsys: Any
) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", TEXTS[:1] + TEXTS[2:])
    good, bad = str(tiny_run / "model"), str(tmp_path / "bad")
    shutil.copytree(good, bad)
    model = AutoModelForCausalLM.from_pretrained(good)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(-3)
    model.save_pretrained(bad)
    assert main(["compare", good, good, bad, "--source", str(source), "--json"]) == 0
    first, same, worse = json.loads(capsys.readouterr().out)["models"]
    assert first["bits_per_byte"] == same["bits_per_byte"]
    assert (same["difference"], same["verdict"]) == (
        0.0,
        "no difference that this text can show",
    )
    assert worse["verdict"] == "worse"
    assert worse["difference"] == pytest.approx(worse["bits_per_byte"] - first["bits_per_byte"])
    assert main(["compare", good, bad, "--source", str(source)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"beside {good}: worse" in lines[-1]
    tokenizer = AutoTokenizer.from_pretrained(good)
    by_hand = sum(
        nats_of(AutoModelForCausalLM.from_pretrained(good), tokenizer, text, 16)
        for text in TEXTS[:1] + TEXTS[2:]
    )
    size = sum(len(text.encode()) for text in TEXTS[:1] + TEXTS[2:])
    assert first["bits_per_byte"] == pytest.approx(by_hand / math.log(2) / size, rel=1e-5)


def test_what_cannot_be_compared_is_one_line(tiny_run: Path, tmp_path: Path, capsys: Any) -> None:
    model = str(tiny_run / "model")
    assert main(["compare", model, "./none", "--source", "x.txt"]) == 2
    assert "./none: no such folder" in capsys.readouterr().err
    assert main(["compare", model, "--source", str(tmp_path / "none.txt")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    one = write_jsonl(tmp_path / "one.jsonl", TEXTS[:1])
    found = compare([model, model], source=one)
    assert found.models[1].verdict == "one document: nothing can be said about chance"
    # No blocks are made, so no text is too short for one.
    again = compare([model, model], source=one, overrides=["data.block_size=512"])
    assert again.models[0].bits_per_byte == found.models[0].bits_per_byte
