"""Make small models, blocks and trainers, and stop and resume their runs."""

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import TrainerCallback

from hf_lm.checkpoints.store import CheckpointStore
from hf_lm.data.blocks.dataset import BlockDataset, table_of
from hf_lm.data.collator import collate
from hf_lm.model.build import build_model
from hf_lm.model.config import Vocabulary
from hf_lm.recipe import ModelRecipe, TrainingRecipe
from hf_lm.training.arguments import training_arguments
from hf_lm.training.optimizer import build_optimizer
from hf_lm.training.schedule import build_lr_schedule
from hf_lm.training.trainer import LMTrainer, TrainerHooks, build_trainer

T, V, STEPS = 8, 50, 20

TRAINING = TrainingRecipe(
    optimizer="adamw",
    max_steps=STEPS,
    learning_rate=0.01,
    warmup_steps=3,
    max_grad_norm=0.5,
    logging_steps=1,
)


def make_blocks(count: int = 8 * STEPS) -> BlockDataset:
    """Make random blocks of T+1 ids."""
    ids = np.random.default_rng(0).integers(0, V, (count, T + 1)).astype(np.uint16)
    return BlockDataset(Dataset(table_of(ids)))


def make_model(family: Any = "gpt2") -> torch.nn.Module:
    """Make a small model."""
    shape = ModelRecipe(family=family, n_layer=2, n_head=2, n_embd=16)
    return build_model(shape, Vocabulary(V, 0, 0), block_size=T, seed=1)


def make_trainer(
    folder: Path,
    rows: list[dict[str, Any]],
    *,
    recipe: TrainingRecipe = TRAINING,
    micro: int = 8,
    accumulation: int = 1,
    blocks: Any = None,
    model: torch.nn.Module | None = None,
    collator: Any = collate,
    **hooks: Any,
) -> LMTrainer:
    """Make a trainer on the CPU in fp32 that appends its log rows to `rows`."""
    blocks = blocks if blocks is not None else make_blocks()
    args = training_arguments(
        recipe,
        output_dir=str(folder),
        seed=3,
        data_seed=3,
        use_cpu=True,
        max_steps=recipe.max_steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=accumulation,
    )
    defaults: dict[str, Any] = {
        "make_optimizer": partial(build_optimizer, recipe=recipe),
        "make_schedule": partial(build_lr_schedule, recipe=recipe),
        "evaluate": lambda model: {
            "loss": 1.0,
            "perplexity": math.e,
            "accuracy": 0.5,
            "bits_per_byte": 2.0,
        },
        "generate_samples": lambda model: [{"prompt": "a", "text": "b"}],
        "write_row": rows.append,
        "flops_per_token": 100.0,
        "peak_flops": 1e9,
    }
    return build_trainer(
        recipe,
        args,
        notify=lambda line: None,
        hooks=TrainerHooks(**{**defaults, **hooks}),
        checkpoints=CheckpointStore(folder, limit=recipe.save_total_limit),
        model=model or make_model(),
        train_dataset=blocks,
        eval_dataset=blocks,
        data_collator=collator,
    )


RESUME_STEPS = 9


class Stop(TrainerCallback):
    """Ends a run after a step, as a kill would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Raise before the step after the given one."""
        if state.global_step == self.step:
            raise KeyboardInterrupt


def trainer_of(folder: Path, axis: dict[str, Any], rows: list[Any] | None = None) -> Any:
    """Make a trainer of a few steps, with changed training keys."""
    axis = {"max_steps": RESUME_STEPS, "save_steps": 3, "save_total_limit": None, **axis}
    micro, accumulation = axis.pop("micro", 8), axis.pop("accumulation", 1)
    blocks, dropout = axis.pop("blocks", 8 * RESUME_STEPS), axis.pop("dropout", 0.0)
    recipe = TRAINING.model_copy(update=axis)
    model = make_model()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout
    return make_trainer(
        folder,
        [] if rows is None else rows,
        recipe=recipe,
        model=model,
        micro=micro,
        accumulation=accumulation,
        blocks=make_blocks(blocks),
    )


def continued(folder: Path, axis: dict[str, Any]) -> Any:
    """Resume from the newest checkpoint to the end, and return the trainer."""
    trainer = trainer_of(folder, axis)
    trainer.train_from(CheckpointStore(folder).latest_valid())
    return trainer


def stopped(folder: Path, axis: dict[str, Any], step: int) -> None:
    """Train and stop after a step."""
    trainer = trainer_of(folder, axis)
    trainer.add_callback(Stop(step))
    with pytest.raises(KeyboardInterrupt):
        trainer.train_from(CheckpointStore(folder).latest_valid())


def state_of(folder: Path) -> dict[str, Any]:
    """Return every tensor and number of a run's last checkpoint."""
    last = folder / f"checkpoint-{RESUME_STEPS}"
    tensors: dict[str, Any] = {}
    for path in sorted(last.glob("*.safetensors")):
        tensors |= {f"{path.name}:{name}": value for name, value in load_file(path).items()}
    numbers = json.loads((last / "state.json").read_text())
    del numbers["seconds"]  # differs from run to run
    return {**tensors, "numbers": numbers}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Return whether two states are equal bit for bit."""
    return one.keys() == other.keys() and all(
        torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name]
        for name, value in one.items()
    )
