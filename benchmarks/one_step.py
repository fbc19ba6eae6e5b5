"""Single steps in a process of their own, as train.py calls them; prints one JSON line.

loop   a plain loop over our model, computed as a long run is
ours   what a step of GPT-2 small needs above weights, gradients and optimizer state
stock  the same, of transformers' GPT2LMHeadModel
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import statistics
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_lm.kernels import Kernels

LAYERS, HEADS, WIDTH, BLOCK, BATCH, VOCABULARY = 6, 4, 256, 256, 8, 8192
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


def loop(steps: int) -> Figures:
    """A plain loop over random blocks."""
    import torch

    from hf_lm.machine import find_machine
    from hf_lm.model import build_model, compile_blocks
    from hf_lm.model_config import Vocabulary
    from hf_lm.optimizer import build_optimizer
    from hf_lm.plan import describe_network, flops_per_token
    from hf_lm.recipe import ModelRecipe, TrainingRecipe

    recipe = TrainingRecipe(max_steps=steps, optimizer="adamw", learning_rate=1e-3)
    machine, kernels = find_machine(recipe), long_run()
    network = ModelRecipe(n_layer=LAYERS, n_head=HEADS, n_embd=WIDTH)
    vocabulary = Vocabulary(VOCABULARY, 0, 0)
    model = build_model(network, vocabulary, block_size=BLOCK, attention=kernels.attention)
    if kernels.compile:
        compile_blocks(model)
    optimizer = build_optimizer(model, recipe=recipe)
    ids = torch.randint(0, VOCABULARY, (BATCH, BLOCK + 1))
    batch = {"input_ids": ids[:, :-1], "shift_labels": ids[:, 1:]}
    times = []
    for _ in range(steps):
        began = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=machine.precision == "bf16"):
            loss = model(**batch, num_items_in_batch=BATCH * BLOCK, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - began)
    return {
        # As a logged row does: the mean of five steps, and the median of those.
        "tokens_per_second": statistics.median(
            5 * BATCH * BLOCK / sum(times[start : start + 5]) for start in range(5, steps - 4, 5)
        ),
        "flops_per_token": flops_per_token(describe_network(model), BLOCK),
        "peak_flops": machine.peak_flops,
    }


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
    parser.add_argument("what", choices=("loop", "ours", "stock"))
    parser.add_argument("--steps", type=int, default=30)
    given = parser.parse_args()
    loops = given.what == "loop"
    found = loop(given.steps) if loops else step_memory(ours=given.what == "ours")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
