"""Random kills: ours beside the stock Trainer, struck by the same signals at the same rate.

    python benchmarks/kills.py --kills 1000 --stock-kills 40 --seed 0

Both sides train the same small network and save every third step, so a kill often meets a save.
A run is started and killed until it is done, then the next one begins. Prints a table, what the
kills met, and every problem with its seed; the last line is one JSON object.
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

from harness import EVAL, SAVE, STEPS, Run, Tally, Whole, campaign, ended, strike, whole

BLOCK, BATCH, VOCABULARY = 16, 8, 320  # as the harness's recipe has them


def stock(folder: Path) -> None:
    """A plain Trainer, continued as its documentation says."""
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
    """A run of the stock Trainer."""
    return Run(stock, (folder,), folder, folder.parent / "home", heeds=False)


def drop_newest(run: Run) -> None:
    """What a person would do by hand: delete the checkpoint that cannot be loaded."""
    found = sorted(run.folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    shutil.rmtree(found[-1])


def endure_by_hand(run: Run, expected: Whole, tally: Tally, seed: int, kills: int) -> None:
    """Start a run and kill it until it is done, or enough kills were made."""
    chance = random.Random(seed)
    while True:
        process = run.start()
        how = ""
        if tally.kills < kills:
            how, _ = strike(process, run, chance, expected.seconds)
            expected.learn(killed=bool(how))
        ended(process, run)
        tally.kills += bool(how)
        if process.exitcode == 0:
            tally.completed += 1
            tally.same += run.bits() == expected.bits
            return
        if not how:
            tally.refused += 1
            drop_newest(run)


def stock_campaign(kills: int, seed: int, base: Path) -> Tally:
    """So many kills of the stock Trainer, over as many runs as they need."""
    tally = Tally()
    expected = whole(stock_run(base / "stock"))
    while tally.kills < kills:
        run = stock_run(base / f"stock-{seed}")
        endure_by_hand(run, expected, tally, seed, kills)
        seed += 1
    return tally


def shared(
    function: Callable[[int, int, Path], Tally], kills: int, given: argparse.Namespace
) -> Tally:
    """The kills of all workers, each a process with runs and seeds of its own."""
    total = Tally()
    workers = min(given.workers, max(1, kills))
    shares = [kills // workers + (number < kills % workers) for number in range(workers)]
    with (
        tempfile.TemporaryDirectory(prefix="hf_lm-kills-", ignore_cleanup_errors=True) as base,
        ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool,
    ):
        seeds = [given.seed + number * 1_000_000 for number in range(workers)]
        folders = [Path(base) / str(number) for number in range(workers)]
        for folder in folders:
            folder.mkdir()
        for tally in pool.map(function, shares, seeds, folders):
            total.add(tally)
    return total


def main() -> None:
    """Kill both, and print."""
    parser = argparse.ArgumentParser(description="Random kills: ours beside the stock Trainer.")
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--stock-kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    began = time.monotonic()
    ours = shared(campaign, given.kills, given)
    seconds = time.monotonic() - began
    other = shared(stock_campaign, given.stock_kills, given)
    rows = {
        "kills": (ours.kills, other.kills),
        "restarts that could not resume": (ours.refused, other.refused),
        "runs completed": (ours.completed, other.completed),
        "runs with the same bits": (ours.same, other.same),
    }
    print(f"{'':32}{'ours':>8}{'stock':>8}")
    for name, figures in rows.items():
        print(f"{name:32}" + "".join(f"{figure:8}" for figure in figures))
    print(f"\n{ours.kills / seconds * 60:.0f} kills a minute; seeds from {given.seed}")
    for name in ("hows", "moments", "lost"):
        print(f"{name}: {json.dumps(dict(sorted(getattr(ours, name).items())))}")
    for problem in ours.problems:
        print(f"\nPROBLEM {problem}")
    result = {name.replace(" ", "_"): figures for name, figures in rows.items()}
    print(json.dumps({**result, "problems": len(ours.problems)}))
    sys.exit(bool(ours.problems))


if __name__ == "__main__":
    main()
