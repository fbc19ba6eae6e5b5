"""Measure single training steps; train.py calls this in its own process. Prints one JSON line.

turns  steps of our trainer, compared with a plain loop over the same model
saves  steps of the model of small.json after a checkpoint, compared with steps without one
ours   memory of a step of GPT-2 small, beyond weights, gradients and optimizer state
stock  the same for transformers' GPT2LMHeadModel
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from hf_lm.planning.hardware import Hardware
    from hf_lm.planning.kernels import Kernels
    from hf_lm.recipe import TrainingRecipe
    from hf_lm.training.trainer import LMTrainer

LAYERS, HEADS, WIDTH, BLOCK, BATCH, VOCABULARY = 6, 4, 256, 256, 8, 8192
SMALL_BATCH, SMALL_BLOCK, SAVE_STEPS = 16, 64, 20  # as in recipes/small.json
TURN = 5  # steps of one side before it is the turn of the other
Figures = dict[str, Any]


def long_run(dropout: float = 0.0) -> Kernels:
    """Choose the kernels of the measured model as for a run of unlimited length."""
    from hf_lm.model.build import build_model
    from hf_lm.model.config import Vocabulary
    from hf_lm.planning.hardware import detect_hardware
    from hf_lm.planning.kernels import choose_kernels
    from hf_lm.recipe import ModelRecipe, Recipe

    shape = ModelRecipe(n_layer=LAYERS, n_head=HEADS, n_embd=WIDTH, dropout=dropout)
    recipe, vocabulary = Recipe(model=shape), Vocabulary(VOCABULARY, 0, 0)
    model = build_model(shape, vocabulary, block_size=BLOCK, meta=True)
    precision = detect_hardware(recipe.training).precision
    return choose_kernels(recipe, model, device="cpu", precision=precision, flops=math.inf)


def turns(steps: int) -> Figures:
    """Measure steps of LMTrainer and of a plain loop in turns, each with its own model.

    Both run in one process, and the matmul peak is measured between them, because the speed of the
    machine drifts within a minute.
    """
    from transformers import TrainerCallback

    from hf_lm.planning.costs import describe_model, flops_per_token
    from hf_lm.planning.hardware import detect_hardware, keep_freed_memory, measured_flops
    from hf_lm.recipe import TrainingRecipe

    recipe = TrainingRecipe(
        max_steps=steps,
        optimizer="adamw",
        learning_rate=1e-3,
        logging_steps=TURN,
        save_steps=steps,
    )
    hardware = detect_hardware(recipe)
    keep_freed_memory()
    model, plain_step = make_model(), make_plain_step(recipe, hardware.dtype)
    ours: list[float] = []
    plain: list[float] = []
    peaks: list[float] = []

    class Turns(TrainerCallback):
        """Runs the plain loop between the trainer's turns, and times both."""

        began: float | None = None

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            """Start a turn; the batch is already read, and the previous step is finished."""
            if state.global_step % TURN:
                return
            if self.began is not None:
                ours.append(time.perf_counter() - self.began)
            began = time.perf_counter()
            for _ in range(TURN):
                plain_step()
            plain.append(time.perf_counter() - began)
            peaks.append(measured_flops("cpu", hardware.dtype))
            self.began = time.perf_counter()

    with tempfile.TemporaryDirectory() as folder:
        make_trainer(recipe, hardware, model, Turns(), Path(folder)).train_from(None)
    pairs = list(zip(ours, plain, peaks, strict=False))[1:]  # the first turn is a warm-up
    tokens, flops = TURN * BATCH * BLOCK, flops_per_token(describe_model(model), BLOCK)
    return {
        "step_vs_bare_loop": statistics.median(
            our_time / plain_time for our_time, plain_time, _ in pairs
        ),
        "matmul_share": statistics.median(
            flops * tokens / our_time / peak for our_time, _, peak in pairs
        ),
        "turns": len(pairs),
    }


def make_model() -> Any:
    """Make the measured model, with the kernels of a long run."""
    from hf_lm.model.build import build_model, compile_blocks
    from hf_lm.model.config import Vocabulary
    from hf_lm.recipe import ModelRecipe

    kernels, shape = long_run(), ModelRecipe(n_layer=LAYERS, n_head=HEADS, n_embd=WIDTH)
    vocabulary = Vocabulary(VOCABULARY, 0, 0)
    model = build_model(shape, vocabulary, block_size=BLOCK, attention=kernels.attention)
    if kernels.compile:
        compile_blocks(model)
    return model


def make_plain_step(recipe: TrainingRecipe, dtype: torch.dtype) -> Callable[[], None]:
    """Return a step with the necessary work and nothing else."""
    import torch

    from hf_lm.training.optimizer import build_optimizer

    model = make_model()
    optimizer = build_optimizer(model, recipe=recipe)
    ids = torch.randint(0, VOCABULARY, (BATCH, BLOCK + 1))
    batch = {"input_ids": ids[:, :-1], "shift_labels": ids[:, 1:]}

    def step() -> None:
        """Compute the loss and gradients, clip them, and update the weights."""
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            loss = model(**batch, num_items_in_batch=BATCH * BLOCK, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def make_saving(stretches: dict[bool, list[float]], copies: list[float]) -> Any:
    """Make a callback that saves before every other stretch of steps, and times each stretch."""
    from transformers import TrainerCallback

    class Saving(TrainerCallback):
        """Ends a stretch and starts the next one."""

        began: float | None = None
        saved = False

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            """Time the finished stretch; the step is completely done."""
            if state.global_step % SAVE_STEPS:
                return
            if self.began is not None:
                copy_seconds = copies[-1] if self.saved else 0.0
                seconds = time.perf_counter() - self.began - copy_seconds
                stretches[self.saved].append(seconds / SAVE_STEPS)
            self.saved = not self.saved
            control.should_save = self.saved
            self.began = time.perf_counter()

    return Saving()


def saves(steps: int) -> Figures:
    """Measure steps while a checkpoint is written, and the time to verify a checkpoint.

    Every other stretch of steps begins with a checkpoint; its copy to memory is not counted.
    """
    from hf_lm.checkpoints.manifest import verify
    from hf_lm.model.build import build_model
    from hf_lm.model.config import Vocabulary
    from hf_lm.planning.hardware import detect_hardware, keep_freed_memory
    from hf_lm.recipe import ModelRecipe, TrainingRecipe
    from hf_lm.system.files import size_of

    recipe = TrainingRecipe(
        max_steps=steps,
        learning_rate=0.02,
        matrix_learning_rate=0.02,
        optimizer="muon",
        save_steps=steps,
        logging_steps=steps,
    )
    hardware = detect_hardware(recipe)
    keep_freed_memory()
    shape = ModelRecipe(n_layer=4, n_head=4, n_embd=128)
    model = build_model(shape, Vocabulary(VOCABULARY, 0, 0), block_size=SMALL_BLOCK, seed=1)
    stretches: dict[bool, list[float]] = {True: [], False: []}
    copies: list[float] = []

    with tempfile.TemporaryDirectory() as name:
        trainer = make_trainer(
            recipe,
            hardware,
            model,
            make_saving(stretches, copies),
            Path(name),
            batch=SMALL_BATCH,
            block=SMALL_BLOCK,
        )
        copy = trainer._save_checkpoint

        def timed(model: Any, trial: Any) -> None:
            """Copy the state to memory, and time it."""
            began = time.perf_counter()
            copy(model, trial)
            copies.append(time.perf_counter() - began)

        trainer._save_checkpoint = timed
        trainer.train_from(None)
        checkpoint = trainer.checkpoints.latest_valid()
        assert checkpoint
        size, began = size_of(checkpoint), time.perf_counter()
        assert not list(verify(checkpoint))
        verify_seconds = time.perf_counter() - began
    after_save, plain = (statistics.median(stretches[saved][1:]) for saved in (True, False))
    return {
        "step_behind_a_checkpoint": after_save / plain,
        "step_seconds": plain,
        "copy_seconds": statistics.median(copies),
        "checkpoint_bytes": size,
        "verify_seconds_per_gigabyte": verify_seconds / size * 1e9,
        "stretches": len(stretches[True]),
    }


def make_trainer(
    recipe: TrainingRecipe,
    hardware: Hardware,
    model: Any,
    callback: Any,
    folder: Path,
    *,
    batch: int = BATCH,
    block: int = BLOCK,
) -> LMTrainer:
    """Make our trainer as a run does, on random blocks."""
    import numpy as np
    from datasets import Dataset

    from hf_lm.checkpoints.store import CheckpointStore
    from hf_lm.data.blocks.dataset import BlockDataset, table_of
    from hf_lm.data.collator import collate
    from hf_lm.training.arguments import training_arguments
    from hf_lm.training.optimizer import build_optimizer
    from hf_lm.training.schedule import build_lr_schedule
    from hf_lm.training.trainer import TrainerHooks, build_trainer

    assert recipe.max_steps
    shape = (batch * recipe.max_steps, block + 1)
    ids = np.random.default_rng(0).integers(0, VOCABULARY, shape, dtype=np.uint16)
    hooks = TrainerHooks(
        make_optimizer=partial(build_optimizer, recipe=recipe),
        make_schedule=partial(build_lr_schedule, recipe=recipe),
        evaluate=lambda model: {},
        generate_samples=lambda model: [],
        write_row=lambda row: None,
        flops_per_token=1.0,
        peak_flops=1.0,
    )
    args = training_arguments(
        recipe,
        output_dir=str(folder),
        max_steps=recipe.max_steps,
        per_device_train_batch_size=batch,
        **hardware.arguments(),
    )
    args.eval_strategy = "no"
    trainer = build_trainer(
        recipe,
        args,
        hooks=hooks,
        checkpoints=CheckpointStore(folder, limit=1),
        notify=print,
        model=model,
        train_dataset=BlockDataset(Dataset(table_of(ids))),
        data_collator=collate,
    )
    trainer.add_callback(callback)
    return trainer


def step_memory(*, ours: bool) -> Figures:
    """Measure the bytes of a step beyond weights, gradients and optimizer state."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from hf_lm.model.build import build_model
    from hf_lm.model.config import Vocabulary
    from hf_lm.recipe import ModelRecipe

    size, block = 50_257, 1024
    if ours:
        kernels = long_run()
        recipe, vocabulary = ModelRecipe(size="small"), Vocabulary(size, 0, 0)
        model: Any = build_model(recipe, vocabulary, block_size=block, attention=kernels.attention)
    else:
        config = GPT2Config(resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
        model = GPT2LMHeadModel(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()  # creates the optimizer state
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ids = torch.randint(0, size, (4, block + 1))
    targets = {"shift_labels": ids[:, 1:]} if ours else {}
    model(ids[:, :-1], labels=ids[:, :-1], use_cache=False, **targets).loss.backward()
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"step_memory": (after - before) * 1024}


def main() -> None:
    """Run one measurement and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("turns", "saves", "ours", "stock"))
    parser.add_argument("--steps", type=int, default=30)
    args = parser.parse_args()
    measured = {
        "turns": partial(turns, args.steps),
        "saves": partial(saves, args.steps),
        "ours": partial(step_memory, ours=True),
        "stock": partial(step_memory, ours=False),
    }
    print(json.dumps(measured[args.what]()))


if __name__ == "__main__":
    main()
