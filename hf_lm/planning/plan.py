"""Plan a run: steps, batch sizes, memory and disk."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from hf_lm.errors import RecipeError
from hf_lm.planning.costs import STATE_BYTES, ModelSize, activation_bytes, flops_per_token
from hf_lm.recipe import TrainingRecipe, count_steps

MEMORY_SHARE = 0.8  # of the free memory, for an estimate; the rest is for libraries and fragments


SPARE = 0.05  # of it, beside a step that was tried, for what grows in a run


@dataclass(frozen=True)
class Plan:
    """One run in numbers."""

    model_size: ModelSize
    block_size: int
    train_blocks: int | None  # None: a stream
    world_size: int
    micro_batch_size: int
    accumulation: int
    max_steps: int
    optimizer: str
    activation_checkpointing: bool  # activations, in the backward pass
    checkpoints: int  # that stand side by side
    free_memory: int  # bytes of one process

    def with_micro_batch_size(self, micro_batch_size: int) -> Plan:
        """The same run with so many blocks at a time on each process."""
        share = self.micro_batch_size * self.accumulation
        return replace(
            self, micro_batch_size=micro_batch_size, accumulation=share // micro_batch_size
        )

    @property
    def memory(self) -> int:
        """Bytes of one process, estimated."""
        n = self.model_size
        state = 4 * (n.parameters - n.trained) + n.trained * STATE_BYTES[self.optimizer]
        return state + activation_bytes(
            self.model_size,
            self.micro_batch_size,
            self.block_size,
            activation_checkpointing=self.activation_checkpointing,
        )

    @property
    def checkpoint(self) -> int:
        """Bytes of one checkpoint: all that is kept of a trained parameter but its gradient."""
        return self.model_size.trained * (STATE_BYTES[self.optimizer] - 4)

    @property
    def disk(self) -> int:
        """Bytes of the run's folder: the checkpoints and the model."""
        return self.checkpoints * self.checkpoint + 4 * self.model_size.parameters

    @property
    def other_memory(self) -> int:
        """Bytes taken beside weights, gradients and activations, with some to spare."""
        trained = self.model_size.trained
        buckets = 4 * trained if self.world_size > 1 else 0  # DDP's copy of all gradients
        return self.checkpoint - 4 * trained + buckets + int(SPARE * self.free_memory)

    @property
    def blocks_per_step(self) -> int:
        """Blocks of one optimizer step."""
        return self.micro_batch_size * self.accumulation * self.world_size

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step."""
        return self.blocks_per_step * self.block_size

    @property
    def steps_per_epoch(self) -> int | None:
        """Optimizer steps of one pass; the last one may be smaller."""
        return math.ceil(self.train_blocks / self.blocks_per_step) if self.train_blocks else None

    @property
    def train_tokens(self) -> int:
        """Tokens of the whole run, repeats included."""
        if not self.train_blocks or not self.steps_per_epoch:
            return self.max_steps * self.tokens_per_step
        epochs, steps = divmod(self.max_steps, self.steps_per_epoch)
        return epochs * self.train_blocks * self.block_size + steps * self.tokens_per_step

    @property
    def epochs(self) -> float | None:
        """Passes over the training blocks."""
        return self.max_steps / self.steps_per_epoch if self.steps_per_epoch else None

    @property
    def flops(self) -> float:
        """FLOPs of the whole run."""
        return self.train_tokens * flops_per_token(self.model_size, self.block_size)

    @property
    def flops_per_step(self) -> float:
        """FLOPs of one optimizer step."""
        return self.tokens_per_step * flops_per_token(self.model_size, self.block_size)

    @property
    def micro_batch_sizes(self) -> list[int]:
        """Blocks a process could hold at a time, the most first."""
        return divisors(self.micro_batch_size * self.accumulation)

    @property
    def unmet_requirements(self) -> tuple[str, ...]:
        """What the run needs and the machine does not have, one line each."""
        if self.memory <= self.free_memory:
            return ()
        return (
            f"model: {self.model_size.parameters:,} parameters need about "
            f"{self.memory / 1e9:.1f} GB to train, {self.free_memory / 1e9:.1f} GB are free; use a "
            "smaller model, data.block_size or training.micro_batch_size, or "
            "training.activation_checkpointing",
        )

    def arguments(self) -> dict[str, Any]:
        """The plan's part of TrainingArguments."""
        return {
            "max_steps": self.max_steps,
            "per_device_train_batch_size": self.micro_batch_size,
            "gradient_accumulation_steps": self.accumulation,
        }

    def facts(self) -> dict[str, int]:
        """What the weights depend on, for provenance.json."""
        return {"micro_batch_size": self.micro_batch_size, "max_steps": self.max_steps}

    def rows(self) -> list[tuple[str, str]]:
        """The lines of the plan."""
        n = self.model_size
        epochs = f", {self.epochs:.2f} epochs" if self.epochs else ""
        trained = f", {n.trained:,} of them trained" if n.trained < n.parameters else ""
        return [
            (
                "model",
                f"{n.parameters:,} parameters{trained}: {n.n_layer} layers, width {n.n_embd}, "
                f"{n.vocab_size:,} tokens, context {self.block_size}",
            ),
            (
                "step",
                f"{self.tokens_per_step:,} tokens = {self.micro_batch_size} blocks × "
                f"{self.accumulation} accumulated × {self.world_size} process(es), "
                f"{readable(self.flops_per_step, 'FLOP')}",
            ),
            (
                "training",
                f"{self.max_steps:,} steps, {self.train_tokens:,} tokens{epochs}"
                if self.max_steps
                else "as many steps as the epochs have, once the text is here",
            ),
            (
                "cost",
                f"{readable(self.flops, 'FLOP')}, about {readable(self.memory, 'B')} of memory, "
                f"{readable(self.checkpoint, 'B')} a checkpoint",
            ),
        ]


def readable(count: float, unit: str) -> str:
    """A number as a person reads it, with its unit."""
    for prefix in ("", "k", "M", "G", "T", "P"):
        if count < 1000:
            return f"{count:.3g} {prefix}{unit}"
        count /= 1000
    return f"{count:,.3g} E{unit}"


def divisors(number: int) -> list[int]:
    """All divisors, in descending order."""
    return [n for n in range(number, 0, -1) if number % n == 0]


def make_plan(
    recipe: TrainingRecipe,
    model_size: ModelSize,
    *,
    block_size: int,
    train_blocks: int | None,
    world_size: int,
    memory: int,
) -> Plan:
    """Micro-batch, accumulation and steps from the tokens of a step and the memory there is.

    Args:
        recipe: how long and in what portions to train.
        model_size: its sizes.
        block_size: tokens predicted in a block.
        train_blocks: blocks of one epoch, None for a stream.
        world_size: processes that share a step.
        memory: free bytes of one process.

    Raises:
        RecipeError: a step cannot be shared out or is more than the text.
    """
    blocks = recipe.tokens_per_step // block_size
    refuse_step(recipe, blocks, block_size, train_blocks, world_size)

    steps = count_max_steps(recipe, blocks, block_size, train_blocks)
    saves = math.ceil(steps / count_steps(recipe.save_steps, steps))
    plan = Plan(
        model_size=model_size,
        block_size=block_size,
        train_blocks=train_blocks,
        world_size=world_size,
        micro_batch_size=blocks // world_size,
        accumulation=1,
        max_steps=steps,
        optimizer=recipe.optimizer,
        activation_checkpointing=recipe.activation_checkpointing,
        # The best stays too, and the next is written before the oldest goes.
        checkpoints=min(saves, (recipe.save_total_limit or saves) + 1) + 1,
        free_memory=memory,
    )
    if recipe.micro_batch_size != "auto":
        return plan.with_micro_batch_size(recipe.micro_batch_size)
    room = MEMORY_SHARE * memory
    fitting = (n for n in plan.micro_batch_sizes if plan.with_micro_batch_size(n).memory <= room)
    return plan.with_micro_batch_size(next(fitting, 1))


def refuse_step(
    recipe: TrainingRecipe,
    blocks: int,
    block_size: int,
    train_blocks: int | None,
    world_size: int,
) -> None:
    """Refuse a step that processes or micro-batches cannot share, or that is more than the text."""
    micro, share = recipe.micro_batch_size, blocks // world_size
    key = f"training.tokens_per_step = {recipe.tokens_per_step}"
    if blocks % world_size:
        raise RecipeError(
            f"{key}: {blocks} blocks cannot be shared by {world_size} processes; use a multiple of "
            f"{world_size * block_size}"
        )
    if micro != "auto" and share % micro:
        raise RecipeError(
            f"training.micro_batch_size = {micro}: does not divide the {share} blocks of a step on "
            f"each of {world_size} processes"
        )
    if train_blocks is not None and blocks > train_blocks:
        raise RecipeError(
            f"{key}: {blocks} blocks of {block_size} tokens a step, but the training text has only "
            f"{train_blocks}; lower it or add text"
        )


def count_max_steps(
    recipe: TrainingRecipe, blocks: int, block_size: int, train_blocks: int | None
) -> int:
    """Optimizer steps of the run, from whichever end the recipe names."""
    if recipe.max_steps:
        return recipe.max_steps
    if recipe.max_tokens:
        return math.ceil(recipe.max_tokens / (blocks * block_size))
    assert recipe.max_epochs, "checked with the recipe"
    if train_blocks is None:  # only in a check, where a Hub dataset is not there yet
        return 0
    return math.ceil(recipe.max_epochs * math.ceil(train_blocks / blocks))
