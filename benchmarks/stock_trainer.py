"""Train as transformers' run_clm example does, with the stock Trainer: the baseline.

The stages and defaults are those of the example: map(tokenize) over 1,000 documents per batch,
map(group) with itertools.chain, which drops the remainder of each batch, GPT2LMHeadModel,
default_data_collator, and Trainer. The code is written from the behaviour of the example, without
`evaluate.load("accuracy")`, which needs a network. Prints one JSON line: seconds of preparation,
median step, tokens per second, peak memory and cache size.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import statistics
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from datasets import load_dataset
from transformers import (
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
    set_seed,
)


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--train", required=True, help="JSONL")
    parser.add_argument("--validation", required=True, help="JSONL")
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--out", type=Path, required=True)
    for name, value in {"layers": 6, "heads": 4, "width": 256, "block": 256, "batch": 8}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument(
        "--warmup", type=float, default=100, help="steps, or a share of all steps if below 1"
    )
    parser.add_argument("--lr", type=float, default=6e-4)
    parser.add_argument("--dropout", type=float, default=0.1, help="GPT-2's own default")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--seed", type=int, default=42)
    return parser.parse_args()


def prepare(args: argparse.Namespace, tokenizer: Any) -> Any:
    """Tokenize and group as run_clm does."""
    files = {"train": args.train, "validation": args.validation}
    raw = load_dataset("json", data_files=files, cache_dir=str(args.out / "cache"))
    tokenized = raw.map(
        lambda rows: tokenizer(rows["text"]), batched=True, remove_columns=raw["train"].column_names
    )

    def group(rows: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
        joined = {key: list(itertools.chain(*rows[key])) for key in rows}
        end = len(joined["input_ids"]) // args.block * args.block
        blocks = {
            key: [ids[i : i + args.block] for i in range(0, end, args.block)]
            for key, ids in joined.items()
        }
        blocks["labels"] = blocks["input_ids"].copy()
        return blocks

    return tokenized.map(group, batched=True)


class Stopwatch(TrainerCallback):
    """Records the time at which each step ended."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Record the time."""
        self.times.append(time.perf_counter())


def main() -> None:
    """Prepare, train, save and print."""
    args = parse_args()
    tokenizer: Any = AutoTokenizer.from_pretrained(args.tokenizer)
    began = time.perf_counter()
    blocks = prepare(args, tokenizer)
    prepare_seconds = time.perf_counter() - began
    set_seed(args.seed)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=args.block,
        n_embd=args.width,
        n_layer=args.layers,
        n_head=args.heads,
        resid_pdrop=args.dropout,
        embd_pdrop=args.dropout,
        attn_pdrop=args.dropout,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    training_args = TrainingArguments(
        output_dir=str(args.out / "run"),
        max_steps=args.steps,
        per_device_train_batch_size=args.batch,
        learning_rate=args.lr,
        warmup_steps=args.warmup,
        lr_scheduler_type="cosine",
        weight_decay=0.1,
        save_strategy="no",
        logging_steps=10,
        report_to="none",
        bf16=args.bf16,
        use_cpu=True,
        disable_tqdm=True,
        seed=args.seed,
    )
    stopwatch = Stopwatch()
    trainer = Trainer(
        model=GPT2LMHeadModel(config),
        args=training_args,
        train_dataset=blocks["train"],
        processing_class=tokenizer,
        data_collator=default_data_collator,
        callbacks=[stopwatch],
    )
    began = time.perf_counter()
    trainer.train()
    train_seconds = time.perf_counter() - began
    model: Any = trainer.model
    model.config.use_cache = True
    model.save_pretrained(args.out / "model")
    tokenizer.save_pretrained(args.out / "model")
    step_seconds = [b - a for a, b in itertools.pairwise(stopwatch.times[3:])]
    files = (path for path in (args.out / "cache").rglob("*") if path.is_file())
    result = {
        "prepare_seconds": prepare_seconds,
        "train_seconds": train_seconds,
        "step_seconds": statistics.median(step_seconds),
        "tokens_per_second": args.batch * args.block / statistics.median(step_seconds),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "cache_bytes": sum(path.stat().st_size for path in files),
        "loss": [row["loss"] for row in trainer.state.log_history if "loss" in row][-1],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
