"""A recipe of ours and the stock Trainer on the same text, tokenizer, shape and steps.

    python benchmarks/compare.py recipes/small.json --steps 200 --rounds 3

Both train in processes of their own, in turn, so that a machine whose speed drifts is unfair to
neither. Prints medians and ratios; the last line is one JSON object. Both models are measured by
`hf-lm evaluate` on the same held-out documents.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hf_lm.dataset import find_corpus, load_documents
from hf_lm.recipe import Recipe, load_recipe

HERE = Path(__file__).parent
HF_LM = Path(sys.executable).with_name("hf-lm")
FIGURES = ("tokens_per_second", "peak_memory_bytes", "bits_per_byte")
Result = dict[str, float]


def call(*command: object) -> str:
    """A command that has to succeed; what it printed."""
    done = subprocess.run(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    return done.stdout


def write_documents(recipe: Recipe, folder: Path) -> None:
    """The documents of both parts, as the stock script reads them."""
    documents = load_documents(recipe.data, find_corpus(recipe.data)).documents
    for part, rows in documents.items():
        with (folder / f"{part}.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps({"text": row["text"]}) + "\n" for row in rows)


def measured(model: Path, recipe: Recipe, folder: Path) -> float:
    """Bits per byte of a saved model on the held-out documents."""
    size = f"data.block_size={recipe.data.block_size}"
    source = folder / "validation.jsonl"
    printed = call(HF_LM, "evaluate", model, "--source", source, "--set", size, "--json")
    return json.loads(printed.splitlines()[-1])["bits_per_byte"]


def ours(given: argparse.Namespace, recipe: Recipe, folder: Path) -> Result:
    """One run of the recipe."""
    run = folder / "ours"
    shutil.rmtree(run, ignore_errors=True)
    changes = {
        "output_dir": json.dumps(str(run)),
        "training.max_steps": given.steps,
        "training.eval_steps": given.steps,
        "training.save_steps": given.steps,
    }
    options = [word for key, value in changes.items() for word in ("--set", f"{key}={value}")]
    call(HF_LM, "run", given.recipe, *options)
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return {
        "tokens_per_second": statistics.median(r["tokens_per_second"] for r in rows if "loss" in r),
        "peak_memory_bytes": json.loads((run / "metrics.json").read_text())["peak_memory_bytes"],
        "bits_per_byte": measured(run / "model", recipe, folder),
    }


def stock(given: argparse.Namespace, recipe: Recipe, folder: Path) -> Result:
    """One run of the stock Trainer, in the shape of the recipe."""
    out = folder / "stock"
    shutil.rmtree(out, ignore_errors=True)
    layers, heads, width = recipe.model.shape
    printed = call(
        *(
            sys.executable,
            HERE / "stock_trainer.py",
            "--out",
            out,
            "--tokenizer",
            folder / "ours" / "model",
        ),
        *("--train", folder / "train.jsonl", "--validation", folder / "validation.jsonl"),
        *("--layers", layers, "--heads", heads, "--width", width),
        *("--block", recipe.data.block_size, "--steps", given.steps, "--dropout", given.dropout),
        *("--batch", recipe.training.tokens_per_step // recipe.data.block_size),
        *("--lr", given.stock_lr or recipe.training.learning_rate),
        *("--warmup", recipe.training.warmup_steps),
    )
    result = json.loads(printed.splitlines()[-1])
    result["bits_per_byte"] = measured(out / "model", recipe, folder)
    return {name: result[name] for name in FIGURES}


def table(results: dict[str, list[Result]]) -> dict[str, Any]:
    """Medians and their ratio, printed as lines."""
    found = {}
    sys.stdout.write(f"{'':20}{'stock':>14}{'ours':>14}{'ratio':>8}\n")
    for name in FIGURES:
        medians = {side: statistics.median(r[name] for r in rows) for side, rows in results.items()}
        ratio = medians["ours"] / medians["stock"]
        found[name] = {**medians, "ratio": ratio}
        line = f"{name:20}{medians['stock']:14,.4g}{medians['ours']:14,.4g}{ratio:8.2f}\n"
        sys.stdout.write(line)
    return found


def main() -> None:
    """Run both sides in turn and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dropout", type=float, default=0.0, help="of the stock model")
    parser.add_argument("--stock-lr", type=float, help="as the recipe's unless given")
    given = parser.parse_args()
    recipe = load_recipe(given.recipe)
    results: dict[str, list[Result]] = {"ours": [], "stock": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_documents(recipe, folder)
        for _ in range(given.rounds):
            results["ours"].append(ours(given, recipe, folder))
            results["stock"].append(stock(given, recipe, folder))
    found = table(results)
    sys.stdout.write(json.dumps({"steps": given.steps, "rounds": given.rounds, **found}) + "\n")


if __name__ == "__main__":
    main()
