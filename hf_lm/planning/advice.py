"""Warn before a run starts about sizes that rarely are what was meant."""

from __future__ import annotations

from collections.abc import Iterator

from hf_lm.planning.plan import Plan
from hf_lm.recipe import Recipe, count_steps
from hf_lm.tokenizer import trains_bpe

MOST_EPOCHS = 10
MOST_WARMUP = 0.1  # of a run
FEWEST_STEPS = 100  # of a run whose warmup is looked at; shorter ones are trials
FEWEST_TOKENS = 50  # of training text for each token of the vocabulary


def advice(recipe: Recipe, plan: Plan) -> Iterator[str]:
    """Yield a line for each size that is far from what usually works, with the key to change.

    benchmarks/README.md has the runs behind the limits.

    Args:
        recipe: a recipe without "auto".
        plan: its plan.
    """
    training = recipe.training
    if plan.epochs and plan.epochs > MOST_EPOCHS and not training.load_best_model_at_end:
        yield (
            f"the text is read {plan.epochs:.0f} times, so the validation loss may rise before the "
            "end; training.load_best_model_at_end = true keeps the best model"
        )
    warmup = count_steps(training.warmup_steps, plan.max_steps)
    if plan.max_steps >= FEWEST_STEPS and warmup > MOST_WARMUP * plan.max_steps:
        yield (
            f"training.warmup_steps = {warmup:,} is {warmup / plan.max_steps:.0%} of all steps; "
            "more than a tenth is rarely of use"
        )
    if plan.train_blocks and trains_bpe(recipe.tokenizer, default=recipe.model.pretrained):
        tokens, size = plan.train_blocks * plan.block_size, plan.model_size.vocab_size
        if tokens < FEWEST_TOKENS * size:
            yield (
                f"tokenizer.train.vocab_size = {size:,}: the text has {tokens / size:.0f} tokens "
                f"for each of them, and {FEWEST_TOKENS} or more are learnt better; lower it"
            )
