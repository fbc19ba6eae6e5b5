"""Plan a run: steps, batch sizes, memory and disk."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from hf_lm.errors import RecipeError
from hf_lm.planning.activations import Activations
from hf_lm.planning.costs import STATE_BYTES, ModelSize, flops_per_token
from hf_lm.recipe import TrainingRecipe, count_steps

MEMORY_SHARE = 0.8  # of the free memory, for an estimate; the rest is for libraries and fragments


SPARE = 0.05  # of it, beside a step that was tried, for what grows in a run


class DeviceMemory(NamedTuple):
    """The memory of one process on the device that it trains on.

    Attributes:
        free: bytes.
        used: bytes that it holds before the model is built.
        holds_copies: whether checkpoints are copied within it, as on a CPU; those of a GPU are
            copied to the host.
    """

    free: int
    used: int = 0
    holds_copies: bool = True


@dataclass(frozen=True)
class Plan:
    """The numbers of a run.

    Attributes:
        model_size: the sizes of the model.
        activations: bytes that a forward and backward pass need.
        block_size: tokens of a block.
        train_blocks: blocks of the training set; None for a stream.
        world_size: the number of processes.
        micro_batch_size: blocks that a process trains on at once.
        accumulation: micro-batches of an optimizer step on each process.
        max_steps: optimizer steps of the run.
        optimizer: its name in the recipe.
        checkpoints: the number of checkpoints on the disk at one time.
        device_memory: the memory that the model is in.
    """

    model_size: ModelSize
    activations: Activations
    block_size: int
    train_blocks: int | None
    world_size: int
    micro_batch_size: int
    accumulation: int
    max_steps: int
    optimizer: str
    checkpoints: int
    device_memory: DeviceMemory

    def with_micro_batch_size(self, micro_batch_size: int) -> Plan:
        """Return the plan with another micro-batch size and the same tokens per step."""
        share = self.micro_batch_size * self.accumulation
        return replace(
            self, micro_batch_size=micro_batch_size, accumulation=share // micro_batch_size
        )

    def with_steps(self, steps: int, recipe: TrainingRecipe) -> Plan:
        """Return the plan with another number of optimizer steps, and its checkpoints."""
        return replace(self, max_steps=steps, checkpoints=count_checkpoints(recipe, steps))

    @property
    def needed_memory(self) -> int:
        """Estimated bytes of memory of one process, beside what it holds already.

        A checkpoint is copied, and the copy is written while the next steps are computed.
        """
        n = self.model_size
        state = 4 * (n.parameters - n.trained) + n.trained * STATE_BYTES[self.optimizer]
        copy = self.checkpoint if self.device_memory.holds_copies else 0
        return state + copy + self.activations.of(self.micro_batch_size)

    def largest_micro_batch_size(self, most: int | Literal["auto"]) -> int:
        """Return the largest micro-batch size up to `most`, or with "auto" that fits the memory."""
        if most != "auto":
            return next(size for size in self.micro_batch_sizes if size <= most)
        limit = MEMORY_SHARE * self.device_memory.free
        plans = map(self.with_micro_batch_size, self.micro_batch_sizes)
        fitting = (plan.micro_batch_size for plan in plans if plan.needed_memory <= limit)
        return next(fitting, 1)

    @property
    def memory(self) -> int:
        """Estimated bytes of memory of one process."""
        return self.device_memory.used + self.needed_memory

    @property
    def checkpoint(self) -> int:
        """Bytes of one checkpoint: the trained parameters with their optimizer state."""
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
        return self.checkpoint - 4 * trained + buckets + int(SPARE * self.device_memory.free)

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
        """The possible micro-batch sizes, in descending order."""
        return divisors(self.micro_batch_size * self.accumulation)

    @property
    def unmet_requirements(self) -> tuple[str, ...]:
        """A line for each thing that the run needs and the machine lacks."""
        if self.needed_memory <= self.device_memory.free:
            return ()
        return (
            f"model: {self.model_size.parameters:,} parameters need about "
            f"{self.needed_memory / 1e9:.1f} GB to train, {self.device_memory.free / 1e9:.1f} GB "
            "are free; use a smaller model, data.block_size or training.micro_batch_size, or "
            "training.activation_checkpointing",
        )

    def arguments(self) -> dict[str, object]:
        """Return the TrainingArguments that follow from the plan."""
        return {
            "max_steps": self.max_steps,
            "per_device_train_batch_size": self.micro_batch_size,
            "gradient_accumulation_steps": self.accumulation,
        }

    def provenance(self) -> dict[str, int]:
        """Return the fields of provenance.json about the plan."""
        return {"micro_batch_size": self.micro_batch_size, "max_steps": self.max_steps}


def divisors(number: int) -> list[int]:
    """Return all divisors of a number, in descending order."""
    return [n for n in range(number, 0, -1) if number % n == 0]


def make_plan(
    recipe: TrainingRecipe,
    model_size: ModelSize,
    activations: Activations,
    *,
    block_size: int,
    train_blocks: int | None,
    world_size: int,
    memory: DeviceMemory,
) -> Plan:
    """Plan a run: its steps, and the micro-batch size that fits the memory.

    Args:
        recipe: the `training` section.
        model_size: the sizes of the model.
        activations: bytes that a forward and backward pass need.
        block_size: tokens of a block.
        train_blocks: blocks of the training set; None for a stream.
        world_size: the number of processes.
        memory: the memory that the model will be in.

    Raises:
        RecipeError: the blocks of a step cannot be divided between processes, or are more than
            the training set has.
    """
    blocks = recipe.tokens_per_step // block_size
    check_step_size(recipe, blocks, block_size, train_blocks, world_size)

    steps = count_max_steps(recipe, blocks, block_size, train_blocks)
    plan = Plan(
        model_size=model_size,
        activations=activations,
        block_size=block_size,
        train_blocks=train_blocks,
        world_size=world_size,
        micro_batch_size=blocks // world_size,
        accumulation=1,
        max_steps=steps,
        optimizer=recipe.optimizer,
        checkpoints=count_checkpoints(recipe, steps),
        device_memory=memory,
    )
    return plan.with_micro_batch_size(plan.largest_micro_batch_size(recipe.micro_batch_size))


def check_step_size(
    recipe: TrainingRecipe,
    blocks: int,
    block_size: int,
    train_blocks: int | None,
    world_size: int,
) -> None:
    """Check that the blocks of a step can be divided, and that the training set has so many.

    Raises:
        RecipeError: they cannot, or it has fewer.
    """
    key = f"training.tokens_per_step = {recipe.tokens_per_step}"
    if blocks % world_size:
        raise RecipeError(
            f"{key}: {blocks} blocks cannot be divided between {world_size} processes; use a "
            f"multiple of {world_size * block_size}"
        )
    if train_blocks is not None and blocks > train_blocks:
        raise RecipeError(
            f"{key}: {blocks} blocks of {block_size} tokens per step, but the training text has "
            f"only {train_blocks}; lower it or add text"
        )


def count_max_steps(
    recipe: TrainingRecipe, blocks: int, block_size: int, train_blocks: int | None
) -> int:
    """Return the optimizer steps of a run with a number of steps, tokens or epochs.

    Those of minutes are not known before a trial on the machine, and 0 stands for them.
    """
    if recipe.max_steps:
        return recipe.max_steps
    if recipe.max_tokens:
        return math.ceil(recipe.max_tokens / (blocks * block_size))
    # A check does not download a Hub dataset, so its blocks are not known either.
    if not recipe.max_epochs or train_blocks is None:
        return 0
    return math.ceil(recipe.max_epochs * math.ceil(train_blocks / blocks))


def count_checkpoints(recipe: TrainingRecipe, steps: int) -> int:
    """Return the number of checkpoints on the disk at one time."""
    saves = math.ceil(steps / count_steps(recipe.save_steps, steps))
    # The best one is kept as well, and a new one is written before the oldest is deleted.
    return min(saves, (recipe.save_total_limit or saves) + 1) + 1
