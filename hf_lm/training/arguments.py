"""Convert the recipe's `training` section to TrainingArguments."""

from __future__ import annotations

from typing import Any

from transformers import (
    TrainingArguments,
)

from hf_lm.recipe import TrainingRecipe, count_steps


def training_arguments(recipe: TrainingRecipe, **others: Any) -> TrainingArguments:
    """The recipe's training section as transformers says it.

    Args:
        recipe: the section.
        others: what the plan, the machine and the folder say: `max_steps` and the like.
    """
    total = others["max_steps"]
    evaluate = count_steps(recipe.eval_steps, total)
    save = count_steps(recipe.save_steps, total)
    if recipe.load_best_model_at_end:  # shares of all steps may round to what is no multiple
        save = max(1, round(save / evaluate)) * evaluate
    args = TrainingArguments(
        learning_rate=float(recipe.learning_rate),
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        activation_checkpointing=recipe.activation_checkpointing,
        dataloader_num_workers=recipe.dataloader_num_workers,
        dataloader_pin_memory=recipe.dataloader_pin_memory and not others["use_cpu"],
        logging_steps=recipe.logging_steps,
        remove_unused_columns=False,  # the model takes none of a block's number
        logging_nan_inf_filter=False,  # it would report the mean of earlier losses for a NaN
        eval_strategy="steps",
        eval_steps=evaluate,
        save_strategy="steps",
        save_steps=save,
        load_best_model_at_end=recipe.load_best_model_at_end,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        restore_callback_states_from_checkpoint=True,
        ddp_find_unused_parameters=False,  # every parameter takes part; looking costs time
        report_to=recipe.report_to if isinstance(recipe.report_to, str) else [*recipe.report_to],
        **others,
        **recipe.extra_args,
    )
    if args.n_gpu > 1:
        args._n_gpu = (
            1  # several GPUs in one process would mean nn.DataParallel, which scales wrongly
        )
    return args
