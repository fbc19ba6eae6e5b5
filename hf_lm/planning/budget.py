"""Turn minutes into optimizer steps, from the speed that a trial on this machine had."""

from __future__ import annotations

from typing import NamedTuple

from hf_lm.errors import RecipeError
from hf_lm.recipe import TrainingRecipe

COPY_SPEED = 2e9  # bytes per second; training waits until a checkpoint is copied in memory


class Timing(NamedTuple):
    """The seconds that the parts of training take on this machine.

    Attributes:
        step: of one optimizer step.
        evaluation: of one evaluation with its samples.
        save: of one checkpoint, as far as training waits for it.
    """

    step: float
    evaluation: float = 0.0
    save: float = 0.0


def steps_in(recipe: TrainingRecipe, timing: Timing) -> int:
    """Return the optimizer steps that take `max_minutes` with their evaluations and checkpoints.

    Args:
        recipe: the `training` section; `eval_steps` and `save_steps` below 1 are fractions of all
            steps, so their number does not depend on the steps.
        timing: the seconds of each part.

    Raises:
        RecipeError: the minutes are too short for one step.
    """
    assert recipe.max_minutes, "only such a recipe has a budget"
    seconds, step = 60 * recipe.max_minutes, timing.step
    for every, cost in ((recipe.eval_steps, timing.evaluation), (recipe.save_steps, timing.save)):
        if every < 1:
            seconds -= round(1 / every) * cost
        else:
            step += cost / every
    if seconds < step:
        raise RecipeError(
            f"training.max_minutes = {recipe.max_minutes:g}: is too short: a step takes "
            f"{timing.step:.2g} s, an evaluation {timing.evaluation:.2g} s and a checkpoint "
            f"{timing.save:.2g} s on this machine; raise it, or training.eval_steps and save_steps"
        )
    return int(seconds / step)
