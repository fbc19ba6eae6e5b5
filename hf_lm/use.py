"""A finished model in; what it is worth, what it writes, or the same in another format out.

The sub-commands of `hf-lm` that need no run, each one stage; what is heavy is imported in them.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hf_lm.errors import DataError, RecipeError
from hf_lm.patient import PatientStream

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hf_lm.dataset import Corpus, Scan
    from hf_lm.recipe import Recipe

LONGEST_BLOCK = 1024  # tokens of context to evaluate with, unless the model has fewer


def evaluate(given: argparse.Namespace) -> None:
    """Print loss, perplexity, accuracy and bits per byte of a model."""
    from hf_lm.dataset import find_corpus, scan_documents

    refuse_missing(given.model)
    recipe = evaluated_recipe(given)
    corpus = find_corpus(recipe.data)
    scan = scan_documents(recipe.data, corpus, whole=bool(given.source))
    if not corpus.local:
        reach_hub()
    model, tokenizer = load(given.model)
    if recipe.tokenizer.chat_template:
        tokenizer.chat_template = recipe.tokenizer.chat_template

    from hf_lm import console
    from hf_lm.dataset.collate import make_collate
    from hf_lm.evaluation import context, measure
    from hf_lm.metrics import metric_rows
    from hf_lm.tokenizer import token_bytes

    data = recipe.data
    if given.source and not any(key.startswith("data.block_size=") for key in given.overrides):
        size = min(context(model), LONGEST_BLOCK)
        data = data.model_copy(update={"block_size": size})
    recipe = recipe.model_copy(update={"data": data})
    metrics = measure(
        model,
        evaluated_blocks(recipe, corpus, scan, tokenizer, whole=bool(given.source)),
        recipe.evaluation,
        collate=make_collate(data, tokenizer, part="validation"),
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
    from hf_lm.dataset import load_blocks, load_documents, text_blocks

    if whole:
        return text_blocks(recipe.data, corpus, tokenizer)
    text = load_documents(recipe.data, corpus, scan)
    options = {"seed": recipe.seed, "held_out": recipe.evaluation.max_blocks}
    return load_blocks(recipe.data, text, tokenizer, **options).parts["validation"]


def refuse_missing(name: str) -> None:
    """Refuse a model that is plainly a path, and not there, before anything is loaded."""
    if name.startswith((".", "/", "~")) and not Path(name).expanduser().is_dir():
        raise RecipeError(f"{name}: no such folder (current folder: {Path.cwd()})")


def evaluated_recipe(given: argparse.Namespace) -> Recipe:
    """The recipe of the run the model came from, or one around `--source`.

    Raises:
        DataError: neither is there.
    """
    from hf_lm.recipe import load_recipe, make_recipe

    if given.source:
        data = {"source": given.source, "deduplicate": False}
        tokenizer = {"pretrained": given.model}
        tree = {"data": data, "tokenizer": tokenizer, "training": {"max_steps": 1}}
        return make_recipe(tree, Path.cwd(), name="--source", overrides=given.overrides)
    own = Path(given.model).parent / "recipe.json"
    if not own.is_file():
        raise DataError(f"{given.model}: no run around it (no {own}); name the text with --source")
    return load_recipe(own, overrides=given.overrides)


def generate(given: argparse.Namespace) -> None:
    """Print each prompt with what the model adds to it."""
    refuse_missing(given.model)
    model, tokenizer = load(given.model)

    from hf_lm.evaluation import sample

    written = sample(
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
    refuse_missing(given.model)

    from hf_lm import console
    from hf_lm.export import export_onnx, refuse_export

    refuse_export(given.output)
    model, tokenizer = load(given.model, device="cpu")
    difference = export_onnx(model, tokenizer, given.output)
    rows = [
        ("onnx", console.short(given.output.absolute())),
        ("logits", f"within {difference:.1e} of the largest, on ONNX Runtime"),
    ]
    console.show_rows(given.model, rows)


def reach_hub() -> None:
    """Find out whether the Hub answers; what is said of it is not in the way of what is printed."""
    from hf_lm.hub import settle_offline

    settle_offline(lambda note: PatientStream("stderr").write(f"note: {note}\n"))


def load(
    name: str, *, device: Literal["auto", "cpu"] = "auto"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model with its tokenizer, in fp32; on the GPU if there is one and may be.

    Raises:
        RecipeError: there is no such model.
    """
    from hf_lm import console
    from hf_lm.machine import find_machine
    from hf_lm.model import load_pretrained
    from hf_lm.recipe import TrainingRecipe
    from hf_lm.tokenizer import load_tokenizer

    console.quiet_libraries()
    if not Path(name).is_dir():
        reach_hub()
    machine = find_machine(TrainingRecipe(device=device))
    tokenizer = load_tokenizer(name)
    return load_pretrained(name).to(machine.device), tokenizer
