"""Measure speed, memory and time to quality of training, against the stock Trainer.

    python benchmarks/train.py --rounds 3
    python benchmarks/train.py --only recipes --recipes shakespeare_char --shakespeare FILE

Every measurement runs in its own process, and the two sides take turns, because the speed of the
machine drifts. Both train on the same text. Prints a table; the last line is one JSON object.
  speed     tokens per second and peak memory, ours and stock, without and with dropout
  bare      our step compared with a plain loop, and with the peak of matrix products
  memory    GPT-2 small with 50,257 tokens: memory of a step beyond weights and optimizer
  quality   our seconds to the bits per byte that stock reaches after `--minutes`
  recipes   complete runs of the shipped small recipes
  start     seconds from the command to the first step
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
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from one_step import BATCH, BLOCK, HEADS, LAYERS, VOCABULARY, WIDTH, long_run

HERE = Path(__file__).parent
RECIPES = HERE.parent / "recipes"
SOURCE = "python-stdlib"
Figures = dict[str, Any]


def call(*command: object) -> str:
    """Run a command that has to succeed, and return what it printed."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**environment, "HF_HUB_OFFLINE": "1"},
    )
    return done.stdout


def set_up(folder: Path) -> None:
    """Write the tokenizer that both sides use, and the documents as JSONL for the stock script."""
    from hf_lm.data.load import load_documents
    from hf_lm.data.text.sources import find_corpus
    from hf_lm.recipe import DataRecipe, TokenizerRecipe
    from hf_lm.tokenizer import build_tokenizer

    data = DataRecipe(source=SOURCE)
    documents = load_documents(data, find_corpus(data)).documents
    tokenizer = build_tokenizer(TokenizerRecipe(), documents)
    assert len(tokenizer) == VOCABULARY
    tokenizer.save_pretrained(str(folder / "tokenizer"))
    for split, rows in documents.items():
        with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps({"text": row["text"]}) + "\n" for row in rows)


def run_ours(folder: Path, recipe: str | Path, **changes: Any) -> tuple[float, Figures]:
    """Run a recipe and return its median tokens per second and its metrics.

    The first row of the log is not counted, because it includes compilation. `__` in the name of a
    change stands for a dot.
    """
    out = folder / "ours"
    shutil.rmtree(out, ignore_errors=True)
    changes = {"output_dir": str(out), **changes}
    options = [
        word
        for key, value in changes.items()
        for word in ("--set", f"{key.replace('__', '.')}={json.dumps(value)}")
    ]
    call("-m", "hf_lm.run", recipe, *options)
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    speeds = [row["tokens_per_second"] for row in rows if "loss" in row]
    return statistics.median(speeds[1:]), json.loads((out / "metrics.json").read_text())


def write_recipe(folder: Path, steps: int, dropout: float = 0.0) -> Path:
    """Write a recipe of the measured shape, with the kernels of a long run."""
    recipe = {
        "data": {"source": SOURCE, "validation": {"holdout": 0.05}, "block_size": BLOCK},
        "tokenizer": {"pretrained": str(folder / "tokenizer")},
        "model": {"n_layer": LAYERS, "n_head": HEADS, "n_embd": WIDTH, "dropout": dropout},
        "training": {
            "tokens_per_step": BATCH * BLOCK,
            "micro_batch_size": BATCH,
            "optimizer": "adamw",
            "max_steps": steps,
            "eval_steps": steps,
            "save_steps": steps,
            "logging_steps": 5,
            "compile": long_run(dropout).compile,
        },
        "evaluation": {"max_blocks": 8, "max_new_tokens": 1},
    }
    (folder / "recipe.json").write_text(json.dumps(recipe))
    return folder / "recipe.json"


def run_stock(folder: Path, *options: object) -> Figures:
    """Run the stock Trainer with the same shape."""
    out = folder / "stock"
    shutil.rmtree(out, ignore_errors=True)
    printed = call(
        *(HERE / "stock_trainer.py", "--out", out, "--tokenizer", folder / "tokenizer"),
        *("--train", folder / "train.jsonl", "--validation", folder / "validation.jsonl"),
        *("--layers", LAYERS, "--heads", HEADS, "--width", WIDTH),
        *("--block", BLOCK, "--batch", BATCH, *options),
    )
    return json.loads(printed.splitlines()[-1])


def speed(args: argparse.Namespace, folder: Path) -> Figures:
    """Measure both sides in turn."""
    from hf_lm.planning.hardware import computes_bf16

    figures: Figures = {}
    for dropout, suffix in ((0.0, ""), (0.1, "_dropout")):
        ours, stock, bf16 = [], [], []
        for _ in range(args.rounds):
            rate, metrics = run_ours(folder, write_recipe(folder, args.steps, dropout))
            ours.append((rate, metrics["peak_memory_bytes"]))
            options = ("--steps", args.steps, "--dropout", dropout)
            result = run_stock(folder, *options)
            stock.append((result["tokens_per_second"], result["peak_memory_bytes"]))
            if computes_bf16("cpu"):
                bf16.append(run_stock(folder, *options, "--bf16")["tokens_per_second"])
        ours_speed, ours_memory = (statistics.median(column) for column in zip(*ours, strict=True))
        stock_speed, memory = (statistics.median(column) for column in zip(*stock, strict=True))
        figures |= {
            f"tokens_per_second{suffix}": ours_speed,
            f"peer_tokens_per_second{suffix}": stock_speed,
            f"speed_vs_peer{suffix}": ours_speed / stock_speed,
            f"speed_vs_peer_bf16{suffix}": ours_speed / statistics.median(bf16) if bf16 else None,
            f"memory_vs_peer{suffix}": ours_memory / memory,
        }
    return figures


def bare(args: argparse.Namespace, folder: Path) -> Figures:
    """Compare our step with a plain loop over the same model, and with the matmul peak."""
    return json.loads(call(HERE / "one_step.py", "turns", "--steps", 5 * args.steps))


def memory(args: argparse.Namespace, folder: Path) -> Figures:
    """Measure the memory of one step of GPT-2 small on both sides."""
    ours, stock = (json.loads(call(HERE / "one_step.py", side)) for side in ("ours", "stock"))
    return {
        "step_memory": ours["step_memory"],
        "peer_step_memory": stock["step_memory"],
        "step_memory_vs_peer": ours["step_memory"] / stock["step_memory"],
    }


def quality(args: argparse.Namespace, folder: Path) -> Figures:
    """Train stock for some minutes, then ours for increasing numbers of steps."""
    seconds = 60 * args.minutes
    trial = run_stock(folder, "--steps", 15, "--dropout", 0)
    steps = round(seconds / trial["step_seconds"])
    stock = run_stock(folder, "--steps", steps, "--dropout", 0, "--lr", args.rate)
    printed = call(
        *("-m", "hf_lm.cli", "evaluate", folder / "stock" / "model"),
        *("--source", folder / "validation.jsonl", "--json"),
    )
    goal = json.loads(printed.splitlines()[-1])["bits_per_byte"]
    recipe = json.loads((RECIPES / "small_modern.json").read_text())
    recipe["tokenizer"] = {"pretrained": str(folder / "tokenizer")}
    (folder / "recipe.json").write_text(json.dumps(recipe))
    ends = []
    for steps in args.our_steps:
        _, metrics = run_ours(folder, folder / "recipe.json", training__max_steps=steps)
        ends.append((metrics["bits_per_byte"], metrics["train_seconds"]))
    times_to_goal = [seconds for bits, seconds in ends if bits <= goal]
    return {
        "peer_bits_per_byte": goal,
        "peer_train_seconds": stock["train_seconds"],
        "ours": ends,
        "time_to_peer_quality": min(times_to_goal) / stock["train_seconds"]
        if times_to_goal
        else None,
    }


def recipes(args: argparse.Namespace, folder: Path) -> Figures:
    """Run each shipped small recipe to its end."""
    figures: Figures = {}
    for name in [*args.recipes, *(["shakespeare_char"] if args.shakespeare else [])]:
        changes: dict[str, Any] = {}
        if name == "shakespeare_char":
            text = Path(args.shakespeare).absolute()
            changes = {"data__source": str(text), "data__revision": None}
        began = time.perf_counter()
        _, metrics = run_ours(folder, RECIPES / f"{name}.json", **changes)
        figures[name] = {
            "bits_per_byte": metrics["bits_per_byte"],
            "loss": metrics["loss"],
            "train_seconds": metrics["train_seconds"],
            "process_seconds": round(time.perf_counter() - began, 1),
            "tokens_per_second": metrics["tokens_per_second"],
            "mfu": metrics["mfu"],
            "peak_memory_bytes": metrics["peak_memory_bytes"],
        }
        print(name, json.dumps(figures[name]), flush=True)
    return figures


def start(args: argparse.Namespace, folder: Path) -> Figures:
    """Measure the time to the first step of small.json, with blocks and kernels cached."""
    out, recipe = folder / "ours", RECIPES / "small.json"
    call("-m", "hf_lm.run", recipe, "--set", f"output_dir={out}", "--set", "training.max_steps=60")
    shutil.rmtree(out)
    options = ("--set", f"output_dir={out}", "--set", "training.logging_steps=1")
    began = time.perf_counter()
    command = [sys.executable, "-m", "hf_lm.run", str(recipe), *options]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    log = out / "log.jsonl"
    while not (log.is_file() and log.read_text()):
        time.sleep(0.02)
    seconds = time.perf_counter() - began
    child.kill()
    child.wait()
    return {"first_step_s": seconds}


MEASURED: dict[str, Callable[[argparse.Namespace, Path], Figures]] = {
    f.__name__: f for f in (speed, bare, memory, quality, recipes, start)
}


def main() -> None:
    """Run the chosen measurements and print them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument(
        "--minutes", type=float, default=3, help="minutes that stock trains for quality"
    )
    parser.add_argument(
        "--rate", type=float, default=2e-3, help="learning rate of stock for quality"
    )
    parser.add_argument("--our-steps", type=int, nargs="+", default=[120, 180, 240, 320])
    parser.add_argument("--recipes", nargs="+", default=["small", "small_modern"])
    parser.add_argument("--shakespeare", help="nanoGPT's text, for the recipe shakespeare_char")
    parser.add_argument("--only", nargs="+", choices=MEASURED, default=list(MEASURED))
    args = parser.parse_args()
    figures: Figures = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        set_up(folder)
        for what in args.only:
            measured = MEASURED[what](args, folder)
            for key, value in measured.items():
                print(f"{key:28}{json.dumps(value)}", flush=True)
            figures |= measured
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
