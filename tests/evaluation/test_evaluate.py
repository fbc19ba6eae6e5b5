"""Reported figures equal an independent computation, for every batch size."""

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_lm.data.blocks.build import blocks_in_memory
from hf_lm.data.collator import collate, make_collate
from hf_lm.data.load import load_documents
from hf_lm.data.text.sources import find_corpus
from hf_lm.evaluation import evaluate as evaluation
from hf_lm.evaluation.evaluate import evaluate
from hf_lm.evaluation.generate import generate_ids, generate_samples, prompt_ids
from hf_lm.evaluation.metrics import averages, metric_class
from hf_lm.model.build import build_model
from hf_lm.model.config import Vocabulary
from hf_lm.model.loss import IGNORE_INDEX
from hf_lm.recipe import EvaluationRecipe, ModelRecipe, load_recipe
from hf_lm.tokenizer import token_bytes

V, T = 40, 12


def random_blocks(count: int = 7) -> Dataset:
    """Blocks of random ids."""
    ids = np.random.default_rng(1).integers(0, V, (count, T + 1)).astype(np.uint16)
    return Dataset.from_dict({"input_ids": list(ids)}).with_format("numpy")


def network(**keys: Any) -> torch.nn.Module:
    """A small model."""
    recipe = ModelRecipe(n_layer=2, n_head=2, n_embd=16, **keys)
    return build_model(recipe, Vocabulary(V, 0, 0), block_size=T)


def test_a_uniform_model_has_the_logarithm_of_its_vocabulary_as_loss() -> None:
    model = network()
    with torch.no_grad():
        model.transformer.wte.weight.zero_()
    found = evaluate(
        model,
        random_blocks(),
        EvaluationRecipe(),
        collate=collate,
        token_bytes=np.full(V, 2),
    )
    assert found["loss"] == pytest.approx(math.log(V))
    assert found["perplexity"] == pytest.approx(V)
    assert found["bits_per_byte"] == pytest.approx(math.log2(V) / 2)
    assert found["loss_stderr"] == pytest.approx(0, abs=1e-6)
    assert (found["tokens"], found["bytes"]) == (7 * T, 14 * T)


def test_ignored_targets_count_in_no_metric() -> None:
    def second_half(rows: Any) -> dict[str, torch.Tensor]:
        """A batch whose first targets are left out."""
        batch = collate(rows)
        batch["shift_labels"][:, : T // 2] = IGNORE_INDEX
        return batch

    model, blocks, table = network(), random_blocks(), np.arange(1, V + 1)
    found = evaluate(model, blocks, EvaluationRecipe(), collate=second_half, token_bytes=table)
    ids = torch.tensor(np.stack(blocks["input_ids"]).astype(np.int64))
    with torch.no_grad():
        logits = model(ids[:, :-1]).logits[:, T // 2 :]
    targets = ids[:, 1 + T // 2 :]
    nll = functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    assert found["loss"] == pytest.approx(nll.item(), rel=1e-6)
    assert found["accuracy"] == (logits.argmax(-1) == targets).float().mean().item()
    assert (found["tokens"], found["bytes"]) == (targets.numel(), int((targets + 1).sum()))


def test_metrics_do_not_depend_on_batch_size_or_processes() -> None:
    model, blocks = network(), random_blocks()
    table = np.arange(V)
    found = [
        evaluate(
            model, blocks, EvaluationRecipe(batch_size=size), collate=collate, token_bytes=table
        )
        for size in (1, 3, 7, 16)
    ]
    for other in found[1:]:
        for name, value in found[0].items():
            assert other[name] == pytest.approx(value, rel=1e-6), name


@pytest.mark.parametrize(
    ("tokens", "logits", "expected"),
    [(3 * T, 10**9, [3, 3, 1]), (10**9, 4 * V * T * 2, [2, 2, 2, 1]), (1, 1, [1] * 7)],
)
def test_a_batch_is_bounded_by_its_tokens_and_by_its_logits(
    tokens: int, logits: int, expected: list[int], monkeypatch: Any
) -> None:
    sizes: list[int] = []

    def watched(rows: Any) -> dict[str, torch.Tensor]:
        sizes.append(len(rows))
        return collate(rows)

    monkeypatch.setattr(evaluation, "BATCH_TOKENS", tokens)
    monkeypatch.setitem(evaluation.LOGIT_BYTES, "cpu", logits)
    table = np.ones(V, dtype=np.int64)
    evaluate(network(), random_blocks(), EvaluationRecipe(), collate=watched, token_bytes=table)
    assert sizes == expected


def test_only_the_first_blocks_are_scored_on_request() -> None:
    model, blocks = network(), random_blocks()
    first = blocks.select(range(3))
    options = {"collate": collate, "token_bytes": np.ones(V, dtype=np.int64)}
    some = evaluate(model, blocks, EvaluationRecipe(max_blocks=3), **options)
    assert some == evaluate(model, first, EvaluationRecipe(), **options)


def independent(folder: Path, *, batch: int) -> dict[str, float]:
    """Loss, accuracy and bits per byte of saved files, computed by transformers and torch alone."""
    recipe = json.loads((folder / "recipe.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(folder / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    own = load_recipe(folder / "recipe.json")
    documents = load_documents(own.data, find_corpus(own.data)).documents
    stream: list[int] = []
    for row in documents["validation"]:
        stream += tokenizer(row["text"], split_special_tokens=True)["input_ids"]
        stream.append(tokenizer.eos_token_id)
    size = recipe["data"]["block_size"]
    count = min((len(stream) - 1) // size, recipe["evaluation"]["max_blocks"])
    rows = [stream[i * size : (i + 1) * size + 1] for i in range(count)]
    nll, correct, text = 0.0, 0, 0
    for start in range(0, count, batch):
        ids = torch.tensor(rows[start : start + batch])
        with torch.no_grad():
            logits = model(ids[:, :-1]).logits
        targets = ids[:, 1:]
        nll += functional.cross_entropy(
            logits.reshape(-1, logits.shape[-1]).double(), targets.reshape(-1), reduction="sum"
        ).item()
        correct += (logits.argmax(-1) == targets).sum().item()
    for row in rows:
        text += len(tokenizer.decode(row[1:], skip_special_tokens=True).encode())
    tokens = count * size
    return {
        "loss": nll / tokens,
        "perplexity": math.exp(nll / tokens),
        "accuracy": correct / tokens,
        "bits_per_byte": nll / math.log(2) / text,
        "tokens": tokens,
        "bytes": text,
    }


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_reported_metrics_equal_an_independent_computation(batch: int, tiny_run: Path) -> None:
    reported = json.loads((tiny_run / "metrics.json").read_text())
    for name, value in independent(tiny_run, batch=batch).items():
        assert reported[name] == pytest.approx(value, rel=1e-4), name


def test_evaluating_the_saved_model_gives_the_reported_metrics(tiny_run: Path) -> None:
    reported = json.loads((tiny_run / "metrics.json").read_text())
    recipe = load_recipe(tiny_run / "recipe.json")
    tokenizer = AutoTokenizer.from_pretrained(tiny_run / "model")
    documents = load_documents(recipe.data, find_corpus(recipe.data)).documents
    splits, _ = blocks_in_memory(documents, tokenizer, recipe.data)
    for size in (1, 3, 16):
        found = evaluate(
            AutoModelForCausalLM.from_pretrained(tiny_run / "model"),
            splits["validation"],
            recipe.evaluation.model_copy(update={"batch_size": size}),
            collate=make_collate(recipe.data, tokenizer, split="validation"),
            token_bytes=token_bytes(tokenizer),
        )
        for name, value in found.items():
            assert reported[name] == pytest.approx(value, rel=1e-6), name


def test_the_metric_is_an_evaluate_metric_of_sums() -> None:
    metric = metric_class()(keep_in_memory=True)
    metric.add_batch(nll=[2.0, 4.0], correct=[1, 0], tokens=[2, 2], bytes=[3, 5])
    found = metric.compute()
    assert found["loss"] == 1.5
    assert found["accuracy"] == 0.25
    assert found["bits_per_byte"] == pytest.approx(6 / math.log(2) / 8)


def test_the_standard_error_is_that_of_a_mean_over_blocks() -> None:
    sums = np.random.default_rng(0).normal(30, 4, 200)
    found = averages(nll=list(sums), correct=[0] * 200, tokens=[10] * 200, bytes=[10] * 200)
    assert found["loss_stderr"] == pytest.approx(sums.std(ddof=1) / np.sqrt(200) / 10)
    one = averages(nll=[1.0], correct=[0], tokens=[1], bytes=[0])
    assert one["loss_stderr"] == one["bits_per_byte"] == math.inf
    assert averages(nll=[1e6], correct=[0], tokens=[1], bytes=[1])["perplexity"] == math.inf


def test_samples_are_reproducible_and_restore_the_model(tiny_run: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_run / "model").train()
    tokenizer = AutoTokenizer.from_pretrained(tiny_run / "model")
    before = torch.random.get_rng_state()
    options = {"max_new_tokens": 6, "temperature": 1.0}
    first = generate_samples(model, tokenizer, ["The ", ""], **options)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert model.training
    assert first == generate_samples(model, tokenizer, ["The ", ""], **options)
    assert first != generate_samples(model, tokenizer, ["The ", ""], **options, seed=1)
    assert [piece["prompt"] for piece in first] == ["The ", ""]


def test_samples_equal_generation_without_a_cache(tiny_run: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_run / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_run / "model")
    ids = prompt_ids(tokenizer, "A run", limit=10)
    for _ in range(4):
        with torch.no_grad():
            ids.append(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax().item())
    greedy = generate_samples(model, tokenizer, ["A run"], max_new_tokens=4, temperature=0)
    assert greedy[0]["text"] == tokenizer.decode(ids[-4:], skip_special_tokens=True)


def test_generation_continues_when_the_context_is_full(tiny_run: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_run / "model")
    model.generation_config.eos_token_id = None
    greedy = partial(generate_ids, model, do_sample=False)
    written = greedy([5, 6], max_new_tokens=30)
    assert len(written) == 30
    assert written[:14] == greedy([5, 6], max_new_tokens=14)  # 16 tokens of context
    assert written[14:22] == greedy(written[6:14], max_new_tokens=8)
    assert written[22:] == greedy(written[14:22], max_new_tokens=8)


def test_generation_ends_at_the_end_of_text_token(tiny_run: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_run / "model")
    written = generate_ids(model, [5, 6], max_new_tokens=30, do_sample=False)
    model.generation_config.eos_token_id = [written[13]]  # the last one that the context holds
    first = written.index(written[13])
    assert generate_ids(model, [5, 6], max_new_tokens=30, do_sample=False) == written[: first + 1]


def test_a_prompt_longer_than_the_context_keeps_its_end(tiny_run: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_run / "model")
    assert (
        prompt_ids(tokenizer, "word " * 100, limit=5) == tokenizer("word " * 100)["input_ids"][-5:]
    )
    assert prompt_ids(tokenizer, "", limit=5) == [tokenizer.eos_token_id]
