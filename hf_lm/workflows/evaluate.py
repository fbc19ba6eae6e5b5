"""Evaluate a finished model, or let it write.

The sub-commands of `hf-lm` that need no run, each one stage; what is heavy is imported in them.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_lm.errors import DataError
from hf_lm.workflows.stages import check_model_path, load, reach_hub

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from hf_lm.data.text.scan import Scan
    from hf_lm.data.text.sources import Corpus
    from hf_lm.recipe import Recipe


LONGEST_BLOCK = 1024  # tokens of context to evaluate with, unless the model has fewer


def evaluate(given: argparse.Namespace) -> None:
    """Print loss, perplexity, accuracy and bits per byte of a model."""
    from hf_lm.data.text.scan import scan_documents
    from hf_lm.data.text.sources import find_corpus

    check_model_path(given.model)
    recipe = evaluated_recipe(given)
    corpus = find_corpus(recipe.data)
    scan = scan_documents(recipe.data, corpus, whole=bool(given.source))
    if not corpus.local:
        reach_hub()
    model, tokenizer = load(given.model)
    if recipe.tokenizer.chat_template:
        tokenizer.chat_template = recipe.tokenizer.chat_template

    from hf_lm.data.collator import make_collate
    from hf_lm.evaluation.evaluate import evaluate as evaluate_model
    from hf_lm.evaluation.generate import context_length
    from hf_lm.evaluation.metrics import metric_rows
    from hf_lm.terminal import console
    from hf_lm.tokenizer import token_bytes

    data = recipe.data
    if given.source and not any(key.startswith("data.block_size=") for key in given.overrides):
        size = min(context_length(model), LONGEST_BLOCK)
        data = data.model_copy(update={"block_size": size})
    recipe = recipe.model_copy(update={"data": data})
    metrics = evaluate_model(
        model,
        evaluated_blocks(recipe, corpus, scan, tokenizer, whole=bool(given.source)),
        recipe.evaluation,
        collate=make_collate(data, tokenizer, split="validation"),
        token_bytes=token_bytes(tokenizer),
    )
    if given.json:
        sys.stdout.write(json.dumps(metrics) + "\n")
    else:
        console.show_rows(given.model, metric_rows(metrics))


def evaluated_blocks(
    recipe: Recipe, corpus: Corpus, scan: Scan, tokenizer: PreTrainedTokenizerBase, *, whole: bool
) -> Any:
    """The blocks of a whole text, or those that its run held out of it."""
    from hf_lm.data.load import load_blocks, load_documents, text_blocks

    if whole:
        return text_blocks(recipe.data, corpus, tokenizer)
    text = load_documents(recipe.data, corpus, scan)
    options = {"seed": recipe.seed, "num_validation_blocks": recipe.evaluation.max_blocks}
    return load_blocks(recipe.data, text, tokenizer, **options).splits["validation"]


def evaluated_recipe(given: argparse.Namespace) -> Recipe:
    """The recipe of the run the model came from, or one around `--source`.

    Raises:
        DataError: neither is there.
    """
    from hf_lm.recipe import load_recipe, make_recipe

    if given.source:
        data = {"source": given.source, "deduplicate": False}
        tokenizer = {"pretrained": given.model}
        raw = {"data": data, "tokenizer": tokenizer, "training": {"max_steps": 1}}
        return make_recipe(raw, Path.cwd(), name="--source", overrides=given.overrides)
    own = Path(given.model).parent / "recipe.json"
    if not own.is_file():
        raise DataError(f"{given.model}: no run around it (no {own}); name the text with --source")
    return load_recipe(own, overrides=given.overrides)


def generate(given: argparse.Namespace) -> None:
    """Print each prompt with what the model adds to it."""
    check_model_path(given.model)
    model, tokenizer = load(given.model)

    from hf_lm.evaluation.generate import generate_samples

    written = generate_samples(
        model,
        tokenizer,
        given.prompt or [""],
        max_new_tokens=given.max_new_tokens,
        temperature=given.temperature,
        seed=given.seed,
        chat=given.chat,
    )
    between = "\n" if given.chat else ""
    for piece in written:
        sys.stdout.write(f"{piece['prompt']}{between}{piece['text']}\n")


def export(given: argparse.Namespace) -> None:
    """Write a model for another runtime."""
    check_model_path(given.model)

    from hf_lm.export.onnx import check_export, export_onnx
    from hf_lm.terminal import console

    check_export(given.output)
    model, tokenizer = load(given.model, device="cpu")
    difference = export_onnx(model, tokenizer, given.output)
    rows = [
        ("onnx", console.short(given.output.absolute())),
        ("logits", f"within {difference:.1e} of the largest, on ONNX Runtime"),
    ]
    console.show_rows(given.model, rows)
