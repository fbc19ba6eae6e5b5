"""Kill runs of hf_lm and of the stock Trainer at random moments, with the same signals and rate.

    python benchmarks/kills.py --kills 1000 --stock-kills 40 --seed 0

Both train the same small model and save every third step, so a kill often meets a save. A run is
started and killed until it is done, then the next one begins. Prints a table, what the runs were
doing when they were killed, and every problem with its seed; the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from harness import (
    EVAL,
    SAVE,
    STEPS,
    Reference,
    Run,
    Tally,
    campaign,
    kill_at_random,
    run_uninterrupted,
    wait_for_end,
)

BLOCK, BATCH, VOCABULARY = 16, 8, 320  # as in the recipe of the harness


def stock(folder: Path) -> None:
    """Train with a plain Trainer, and resume it as its documentation says."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed

    set_seed(42)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=BLOCK, n_embd=32, n_layer=1, n_head=2,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    blocks = torch.randint(VOCABULARY, (40 * BATCH, BLOCK))
    rows: Any = [{"input_ids": block, "labels": block} for block in blocks]
    args = TrainingArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=BATCH,
        save_steps=SAVE,
        save_total_limit=2,
        eval_strategy="steps",
        eval_steps=EVAL,
        logging_steps=1,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
    )
    trainer = Trainer(
        model=GPT2LMHeadModel(config), args=args, train_dataset=rows, eval_dataset=rows[:40]
    )
    trainer.train(resume_from_checkpoint=any(folder.glob("checkpoint-*")))
    trainer.save_model(str(folder / "model"))


def stock_run(folder: Path) -> Run:
    """Return a run of the stock Trainer."""
    return Run(stock, (folder,), folder, folder.parent / "home", handles_signals=False)


def drop_newest(run: Run) -> None:
    """Delete the newest checkpoint, as a user would do if it cannot be loaded."""
    checkpoints = sorted(
        run.folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1])
    )
    shutil.rmtree(checkpoints[-1])


def kill_stock_until_done(
    run: Run, expected: Reference, tally: Tally, seed: int, kills: int
) -> None:
    """Start and kill a run until it is done or `kills` is reached."""
    chance = random.Random(seed)
    while True:
        process = run.start()
        kill = ""
        if tally.kills < kills:
            kill, _ = kill_at_random(process, run, chance, expected.seconds)
            expected.adapt(killed=bool(kill))
        wait_for_end(process, run)
        tally.kills += bool(kill)
        if process.exitcode == 0:
            tally.completed += 1
            tally.identical += run.weights_hash() == expected.weights_hash
            return
        if not kill:
            tally.failed_starts += 1
            drop_newest(run)


def stock_campaign(kills: int, seed: int, base: Path) -> Tally:
    """Make `kills` kills of the stock Trainer, over as many runs as they need."""
    tally = Tally()
    expected = run_uninterrupted(stock_run(base / "stock"))
    while tally.kills < kills:
        run = stock_run(base / f"stock-{seed}")
        kill_stock_until_done(run, expected, tally, seed, kills)
        seed += 1
    return tally


def run_workers(
    function: Callable[[int, int, Path], Tally], kills: int, args: argparse.Namespace
) -> Tally:
    """Distribute the kills over worker processes, each with its own runs and seeds."""
    total = Tally()
    workers = min(args.workers, max(1, kills))
    worker_kills = [kills // workers + (number < kills % workers) for number in range(workers)]
    with (
        tempfile.TemporaryDirectory(prefix="hf_lm-kills-", ignore_cleanup_errors=True) as base,
        ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool,
    ):
        seeds = [args.seed + number * 1_000_000 for number in range(workers)]
        folders = [Path(base) / str(number) for number in range(workers)]
        for folder in folders:
            folder.mkdir()
        for tally in pool.map(function, worker_kills, seeds, folders):
            total.add(tally)
    return total


def main() -> None:
    """Kill both and print the results."""
    parser = argparse.ArgumentParser(description="Random kills of hf_lm and of the stock Trainer.")
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--stock-kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    began = time.monotonic()
    ours = run_workers(campaign, args.kills, args)
    seconds = time.monotonic() - began
    stock_tally = run_workers(stock_campaign, args.stock_kills, args)
    rows = {
        "kills": (ours.kills, stock_tally.kills),
        "restarts that could not resume": (ours.failed_starts, stock_tally.failed_starts),
        "runs completed": (ours.completed, stock_tally.completed),
        "runs with the same bits": (ours.identical, stock_tally.identical),
    }
    print(f"{'':32}{'ours':>8}{'stock':>8}")
    for name, figures in rows.items():
        print(f"{name:32}" + "".join(f"{figure:8}" for figure in figures))
    print(f"\n{ours.kills / seconds * 60:.0f} kills per minute; seeds from {args.seed}")
    for name in ("signals", "stages", "lost_steps"):
        print(f"{name}: {json.dumps(dict(sorted(getattr(ours, name).items())))}")
    for problem in ours.problems:
        print(f"\nPROBLEM {problem}")
    result = {name.replace(" ", "_"): figures for name, figures in rows.items()}
    print(json.dumps({**result, "problems": len(ours.problems)}))
    sys.exit(bool(ours.problems))


if __name__ == "__main__":
    main()
