"""Check `training.extra_args` against the installed TrainingArguments.

The fields are read from its source with `ast`: importing the class takes about seven seconds, too
long for reporting a mistake in a recipe.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from hf_lm.recipe.strict_json import Problem
from hf_lm.recipe.validation.suggestions import nearest

PATH = ("training", "extra_args")


# TrainingArguments fields that have a recipe key.
COVERED_BY = {
    "output_dir": "output_dir",
    "seed": "seed",
    "data_seed": "seed",
    "run_name": "name",
    "per_device_train_batch_size": "training.micro_batch_size",
    "gradient_accumulation_steps": "training.tokens_per_step",
    "num_train_epochs": "training.max_epochs",
    "lr_scheduler_type": "training.schedule",
    "lr_scheduler_kwargs": "training.schedule, decay_steps and min_lr_ratio",
    "optim": "training.optimizer",
    "optim_args": "training.optimizer",
    "adam_beta1": "training.betas",
    "adam_beta2": "training.betas",
    "adam_epsilon": "training.eps",
    "bf16": "training.precision",
    "fp16": "training.precision",
    "use_cpu": "training.device",
    "gradient_checkpointing": "training.activation_checkpointing",
    "torch_compile": "training.compile",
    "logging_strategy": "training.logging_steps",
    "eval_strategy": "training.eval_steps",
    "save_strategy": "training.save_steps",
    "per_device_eval_batch_size": "evaluation.batch_size",
    "hub_model_id": "hub.model_id",
    "hub_private_repo": "hub.private",
    "push_to_hub": "hub.push",
    "hub_strategy": "hub.push",
    "hub_always_push": "hub.push",
} | {
    name: f"training.{name}"
    for name in (
        *("max_steps", "learning_rate", "warmup_steps", "weight_decay", "max_grad_norm"),
        *("activation_checkpointing", "logging_steps", "eval_steps", "save_steps", "report_to"),
        *("save_total_limit", "load_best_model_at_end", "dataloader_num_workers"),
        "dataloader_pin_memory",
    )
}


# TrainingArguments fields that would break a promise, with the reason.
REFUSED = {
    "hub_token": "it would be written into checkpoints; use `hf auth login` or HF_TOKEN",
    "enable_jit_checkpoint": "its checkpoint is not exact, and a stopped run would look finished",
    "save_only_model": "such a checkpoint cannot be resumed; OUTPUT_DIR/model is the model alone",
    "auto_find_batch_size": "it changes the tokens of a step; use training.micro_batch_size",
    "ignore_data_skip": "a resumed run would see its data twice",
    "logging_nan_inf_filter": "it would hide a NaN; the run stops at one instead",
    "label_smoothing_factor": "the reported loss would no longer be the mean over tokens",
    "average_tokens_across_devices": "the loss is always the mean over the tokens of all processes",
    "train_sampling_strategy": "only the random order resumes exactly",
    "length_column_name": "all blocks have the same length",
    "dataloader_drop_last": "no block is dropped",
    "remove_unused_columns": "blocks have one column",
    "label_names": "labels are made by the collator",
    "metric_for_best_model": "use training.best_metric",
    "greater_is_better": "follows from training.best_metric",
    "include_num_input_tokens_seen": "tokens are always counted",
    "restore_callback_states_from_checkpoint": "callback states are always restored",
    "resume_from_checkpoint": "run the same command again to resume",
    "disable_tqdm": "the progress bar shows itself on a terminal only",
    "use_cache": "the saved model always has use_cache true",
    "eval_on_start": "pretrained weights are always evaluated first, and new ones know nothing",
    "ddp_find_unused_parameters": "every parameter is used; searching costs time",
    "use_liger_kernel": "the loss is made without logits already",
    "do_train": "a run trains and evaluates; `hf-lm evaluate` evaluates alone",
    "do_eval": "a run trains and evaluates; `hf-lm evaluate` evaluates alone",
    "do_predict": "a run trains and evaluates; `hf-lm evaluate` evaluates alone",
    "optim_target_modules": "every matrix is trained; use model.lora to train less",
    "bf16_full_eval": "the saved model is evaluated in fp32",
    "fp16_full_eval": "the saved model is evaluated in fp32",
    "torch_compile_backend": "each block is compiled by inductor; use training.compile",
    "torch_compile_mode": "each block is compiled by inductor; use training.compile",
    "liger_kernel_config": "the loss is made without logits already",
    "save_on_each_node": "machines share the folder of a run",
    "local_rank": "the launcher sets it",
    "parallelism_config": "hf_lm trains with DDP alone, which needs no setting",
    "deepspeed": "hf_lm trains with DDP alone, which needs no setting",
    "fsdp": "hf_lm trains with DDP alone, which needs no setting",
    "fsdp_config": "hf_lm trains with DDP alone, which needs no setting",
    "accelerator_config": "placement is chosen in the file given to `accelerate launch`",
} | dict.fromkeys(
    (
        *("prediction_loss_only", "batch_eval_metrics", "include_for_metrics"),
        *("eval_do_concat_batches", "eval_use_gather_object", "eval_accumulation_steps"),
    ),
    "evaluation sums over tokens and keeps no logits",
)


KINDS: dict[str, tuple[type, ...]] = {
    "bool": (bool,),
    "int": (int,),
    "float": (int, float),
    "str": (str,),
    "list": (list,),
    "dict": (dict,),
    "None": (type(None),),
}


@cache
def training_arguments() -> dict[str, set[str]]:
    """Return the fields of TrainingArguments, each with the JSON types of its annotation."""
    spec = importlib.util.find_spec("transformers")
    assert spec, "transformers is a dependency"
    source = Path(str(spec.origin)).with_name("training_args.py").read_text(encoding="utf-8")
    classes = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    body = next(node.body for node in classes if node.name == "TrainingArguments")
    return {
        node.target.id: json_types(node.annotation)
        for node in body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


def json_types(annotation: ast.expr) -> set[str]:
    """Return the JSON types that an annotation such as `dict[str, Any] | str | None` allows."""
    if isinstance(annotation, ast.BinOp):
        return json_types(annotation.left) | json_types(annotation.right)
    name = ast.unparse(annotation).split("[")[0]
    # An enum is written as its value, a string; one field has Literal[False] besides str.
    return {name} if name in KINDS else {"str"}


def argument_problems(extra_args: Mapping[str, object]) -> list[Problem]:
    """Return the problems with the names and types of `training.extra_args`."""
    if not extra_args:
        return []
    fields = training_arguments()
    problems = []
    for name, value in extra_args.items():
        if name in COVERED_BY:
            rule: str | None = f"has a recipe key; use {COVERED_BY[name]}"
        elif name in REFUSED or name.startswith("hub_"):
            rule = f"is not allowed: {REFUSED.get(name, 'the hub section sets publishing')}"
        elif name not in fields:
            rule = f"unknown TrainingArguments field; {nearest(name, fields)}"
        else:
            rule = type_rule(value, fields[name])
        if rule:
            problems.append(Problem((*PATH, name), rule))
    return problems


def type_rule(value: object, kinds: set[str]) -> str | None:
    """Return the rule that a value of another type breaks; None if its type is allowed."""
    allowed = tuple(kind for name in kinds for kind in KINDS[name])
    fits = isinstance(value, allowed) and (not isinstance(value, bool) or "bool" in kinds)
    return None if fits else f"is {type(value).__name__}, expected {' or '.join(sorted(kinds))}"
