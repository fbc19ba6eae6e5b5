"""Convert the recipe's `training` section to TrainingArguments."""

from __future__ import annotations

from typing import Any

from transformers import TrainingArguments

from hf_lm.recipe import TrainingRecipe, count_steps
from hf_lm.upstream import checkpointing_name


def training_arguments(recipe: TrainingRecipe, **others: Any) -> TrainingArguments:
    """Convert the recipe's training section to TrainingArguments.

    Args:
        recipe: the section.
        others: arguments that come from the plan, the hardware and the run directory, such as
            `max_steps`.
    """
    others[checkpointing_name()] = recipe.activation_checkpointing
    total = others["max_steps"]
    evaluate = count_steps(recipe.eval_steps, total)
    save = count_steps(recipe.save_steps, total)
    if recipe.load_best_model_at_end:  # rounding may break the multiple that transformers needs
        save = max(1, round(save / evaluate)) * evaluate
    # The processes are connected by now; with one process there is no group to name a backend of.
    extra_args = {k: v for k, v in recipe.extra_args.items() if k != "ddp_backend"}
    args = TrainingArguments(
        learning_rate=float(recipe.learning_rate),
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        dataloader_num_workers=recipe.dataloader_num_workers,
        dataloader_pin_memory=recipe.dataloader_pin_memory and not others["use_cpu"],
        logging_steps=recipe.logging_steps,
        remove_unused_columns=False,  # the column with a block's number is not the model's
        logging_nan_inf_filter=False,  # it would replace a NaN by the mean of earlier losses
        eval_strategy="steps",
        eval_steps=evaluate,
        save_strategy="steps",
        save_steps=save,
        load_best_model_at_end=recipe.load_best_model_at_end,
        metric_for_best_model=f"eval_{recipe.best_metric}",
        greater_is_better=recipe.best_metric == "accuracy",
        restore_callback_states_from_checkpoint=True,
        ddp_find_unused_parameters=False,  # every parameter is used; searching costs time
        report_to=recipe.report_to if isinstance(recipe.report_to, str) else [*recipe.report_to],
        **others,
        **extra_args,
    )
    if args.n_gpu > 1:
        args._n_gpu = (
            1  # with more, the Trainer uses nn.DataParallel, which scales the loss wrongly
        )
    return args
