"""The baseline: what transformers' run_clm example does, on the stock Trainer.

Its stages and defaults: map(tokenize) over 1,000 documents a batch, map(group) by itertools.chain
with the remainder of each batch dropped, GPT2LMHeadModel, default_data_collator, Trainer. Written
from the behaviour of that example; `evaluate.load("accuracy")` is left out, it needs a network.
Prints one JSON line: seconds of preparation, median step, tokens a second, peak memory, cache size.
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


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--train", required=True, help="JSONL")
    parser.add_argument("--validation", required=True, help="JSONL")
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--out", type=Path, required=True)
    for name, value in {"layers": 6, "heads": 4, "width": 256, "block": 256, "batch": 8}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--warmup", type=float, default=100, help="steps, or their share below 1")
    parser.add_argument("--lr", type=float, default=6e-4)
    parser.add_argument("--dropout", type=float, default=0.1, help="GPT-2's own default")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--seed", type=int, default=42)
    return parser.parse_args()


def prepare(given: argparse.Namespace, tokenizer: Any) -> Any:
    """Tokenize and group as run_clm does."""
    files = {"train": given.train, "validation": given.validation}
    raw = load_dataset("json", data_files=files, cache_dir=str(given.out / "cache"))
    tokenized = raw.map(
        lambda rows: tokenizer(rows["text"]), batched=True, remove_columns=raw["train"].column_names
    )

    def group(rows: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
        joined = {key: list(itertools.chain(*rows[key])) for key in rows}
        end = len(joined["input_ids"]) // given.block * given.block
        cut = {
            key: [ids[i : i + given.block] for i in range(0, end, given.block)]
            for key, ids in joined.items()
        }
        cut["labels"] = cut["input_ids"].copy()
        return cut

    return tokenized.map(group, batched=True)


class Stopwatch(TrainerCallback):
    """When each step ended."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Note the time."""
        self.times.append(time.perf_counter())


def main() -> None:
    """Prepare, train, save and print."""
    given = options()
    tokenizer: Any = AutoTokenizer.from_pretrained(given.tokenizer)
    began = time.perf_counter()
    blocks = prepare(given, tokenizer)
    prepared = time.perf_counter() - began
    set_seed(given.seed)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=given.block,
        n_embd=given.width,
        n_layer=given.layers,
        n_head=given.heads,
        resid_pdrop=given.dropout,
        embd_pdrop=given.dropout,
        attn_pdrop=given.dropout,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    args = TrainingArguments(
        output_dir=str(given.out / "run"),
        max_steps=given.steps,
        per_device_train_batch_size=given.batch,
        learning_rate=given.lr,
        warmup_steps=given.warmup,
        lr_scheduler_type="cosine",
        weight_decay=0.1,
        save_strategy="no",
        logging_steps=10,
        report_to="none",
        bf16=given.bf16,
        use_cpu=True,
        disable_tqdm=True,
        seed=given.seed,
    )
    stopwatch = Stopwatch()
    trainer = Trainer(
        model=GPT2LMHeadModel(config),
        args=args,
        train_dataset=blocks["train"],
        processing_class=tokenizer,
        data_collator=default_data_collator,
        callbacks=[stopwatch],
    )
    began = time.perf_counter()
    trainer.train()
    trained = time.perf_counter() - began
    model: Any = trainer.model
    model.config.use_cache = True
    model.save_pretrained(given.out / "model")
    tokenizer.save_pretrained(given.out / "model")
    spans = [b - a for a, b in itertools.pairwise(stopwatch.times[3:])]
    files = (path for path in (given.out / "cache").rglob("*") if path.is_file())
    result = {
        "prepare_seconds": prepared,
        "train_seconds": trained,
        "step_seconds": statistics.median(spans),
        "tokens_per_second": given.batch * given.block / statistics.median(spans),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "cache_bytes": sum(path.stat().st_size for path in files),
        "loss": [row["loss"] for row in trainer.state.log_history if "loss" in row][-1],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
