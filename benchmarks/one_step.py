"""Single steps in a process of their own, as train.py calls them; prints one JSON line.

turns  our trainer's steps beside those of a plain loop over the same network
ours   what a step of GPT-2 small needs above weights, gradients and optimizer state
stock  the same, of transformers' GPT2LMHeadModel
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
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from hf_lm.kernels import Kernels
    from hf_lm.machine import Machine
    from hf_lm.recipe import TrainingRecipe
    from hf_lm.trainer import LMTrainer

LAYERS, HEADS, WIDTH, BLOCK, BATCH, VOCABULARY = 6, 4, 256, 256, 8, 8192
TURN = 5  # steps of one side before the other has its turn
Figures = dict[str, Any]


def long_run(dropout: float = 0.0) -> Kernels:
    """The kernels of a run in the measured shape that is as long as a run may be."""
    from hf_lm.kernels import choose_kernels
    from hf_lm.machine import find_machine
    from hf_lm.recipe import ModelRecipe, Recipe

    recipe = Recipe(model=ModelRecipe(dropout=dropout))
    precision = find_machine(recipe.training).precision
    return choose_kernels(
        recipe, device="cpu", precision=precision, model_type="gpt2", flops=math.inf
    )


def turns(steps: int) -> Figures:
    """LMTrainer's steps and a plain loop's in turns, each over a network of its own.

    In one process, with the peak measured between them: this machine drifts within a minute.
    """
    from transformers import TrainerCallback

    from hf_lm.machine import find_machine, keep_freed_memory, measured_flops
    from hf_lm.plan import describe_network, flops_per_token
    from hf_lm.recipe import TrainingRecipe

    recipe = TrainingRecipe(
        max_steps=steps, optimizer="adamw", learning_rate=1e-3, logging_steps=TURN
    )
    machine = find_machine(recipe)
    keep_freed_memory()
    model, plain_step = make_network(), make_plain_step(recipe, machine.dtype)
    ours: list[float] = []
    plain: list[float] = []
    peaks: list[float] = []

    class Turns(TrainerCallback):
        """Stops the trainer's clock while the plain loop has its turn."""

        began: float | None = None

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            """Runs with the batch of the step already there, and the step before all done."""
            if state.global_step % TURN:
                return
            if self.began is not None:
                ours.append(time.perf_counter() - self.began)
            began = time.perf_counter()
            for _ in range(TURN):
                plain_step()
            plain.append(time.perf_counter() - began)
            peaks.append(measured_flops("cpu", machine.dtype))
            self.began = time.perf_counter()

    make_trainer(recipe, machine, model, Turns()).train()
    pairs = list(zip(ours, plain, peaks, strict=False))[1:]  # the first turn warms both up
    tokens, flops = TURN * BATCH * BLOCK, flops_per_token(describe_network(model), BLOCK)
    return {
        "step_vs_bare_loop": statistics.median(mine / bare for mine, bare, _ in pairs),
        "matmul_share": statistics.median(flops * tokens / mine / peak for mine, _, peak in pairs),
        "turns": len(pairs),
    }


def make_network() -> Any:
    """The network of the measured shape, computed as a long run is."""
    from hf_lm.model import build_model, compile_blocks
    from hf_lm.model_config import Vocabulary
    from hf_lm.recipe import ModelRecipe

    kernels, shape = long_run(), ModelRecipe(n_layer=LAYERS, n_head=HEADS, n_embd=WIDTH)
    vocabulary = Vocabulary(VOCABULARY, 0, 0)
    model = build_model(shape, vocabulary, block_size=BLOCK, attention=kernels.attention)
    if kernels.compile:
        compile_blocks(model)
    return model


def make_plain_step(recipe: TrainingRecipe, dtype: torch.dtype) -> Callable[[], None]:
    """A step that does what has to be done, and nothing else."""
    import torch

    from hf_lm.optimizer import build_optimizer

    model = make_network()
    optimizer = build_optimizer(model, recipe=recipe)
    ids = torch.randint(0, VOCABULARY, (BATCH, BLOCK + 1))
    batch = {"input_ids": ids[:, :-1], "shift_labels": ids[:, 1:]}

    def step() -> None:
        """Forward, backward, clip, step."""
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            loss = model(**batch, num_items_in_batch=BATCH * BLOCK, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def make_trainer(recipe: TrainingRecipe, machine: Machine, model: Any, callback: Any) -> LMTrainer:
    """Our trainer on random blocks, as `fit` makes it."""
    import numpy as np
    from datasets import Dataset

    from hf_lm.dataset.blocks import BlockRows, collate, table_of
    from hf_lm.optimizer import build_optimizer, build_schedule
    from hf_lm.trainer import Hooks, build_trainer, training_arguments

    shape = (BATCH * recipe.max_steps, BLOCK + 1)
    ids = np.random.default_rng(0).integers(0, VOCABULARY, shape, dtype=np.uint16)
    hooks = Hooks(
        make_optimizer=partial(build_optimizer, recipe=recipe),
        make_schedule=partial(build_schedule, recipe=recipe),
        measure=lambda model: {},
        sample=lambda model: [],
        write_row=lambda row: None,
        flops_per_token=1.0,
        peak_flops=1.0,
    )
    args = training_arguments(
        recipe,
        output_dir=tempfile.mkdtemp(),
        max_steps=recipe.max_steps,
        per_device_train_batch_size=BATCH,
        **machine.arguments(),
    )
    args.save_strategy, args.eval_strategy = "no", "no"
    return build_trainer(
        recipe,
        args,
        hooks=hooks,
        callbacks=[callback],
        model=model,
        train_dataset=BlockRows(Dataset(table_of(ids))),
        data_collator=collate,
    )


def step_memory(*, ours: bool) -> Figures:
    """Bytes above weights, gradients and optimizer state."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from hf_lm.model import build_model
    from hf_lm.model_config import Vocabulary
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
    optimizer.step()  # makes its state
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ids = torch.randint(0, size, (4, block + 1))
    targets = {"shift_labels": ids[:, 1:]} if ours else {}
    model(ids[:, :-1], labels=ids[:, :-1], use_cache=False, **targets).loss.backward()
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"step_memory": (after - before) * 1024}


def main() -> None:
    """Measure one thing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("turns", "ours", "stock"))
    parser.add_argument("--steps", type=int, default=30)
    given = parser.parse_args()
    measured = {
        "turns": partial(turns, given.steps),
        "ours": partial(step_memory, ours=True),
        "stock": partial(step_memory, ours=False),
    }
    print(json.dumps(measured[given.what]()))


if __name__ == "__main__":
    main()
