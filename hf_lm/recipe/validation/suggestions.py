"""Suggest the key that was meant: from the names that other tools use, and by similarity."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

# The names of our keys in run_clm, TrainingArguments, nanoGPT, litgpt, axolotl and llm-foundry.
ALIASES = {
    "lr": "learning_rate",
    "max_lr": "learning_rate",
    "min_lr": "min_lr_ratio",
    "wd": "weight_decay",
    "grad_clip": "max_grad_norm",
    "gradient_clipping": "max_grad_norm",
    "clip_grad_norm": "max_grad_norm",
    "epochs": "max_epochs",
    "num_epochs": "max_epochs",
    "num_train_epochs": "max_epochs",
    "steps": "max_steps",
    "max_iters": "max_steps",
    "iterations": "max_steps",
    "warmup": "warmup_steps",
    "warmup_iters": "warmup_steps",
    "warmup_ratio": "warmup_steps",
    "lr_scheduler_type": "schedule",
    "lr_scheduler": "schedule",
    "scheduler": "schedule",
    "optim": "optimizer",
    "batch_size": "tokens_per_step",
    "global_batch_size": "tokens_per_step",
    "train_batch_size": "tokens_per_step",
    "gradient_accumulation_steps": "tokens_per_step",
    "per_device_train_batch_size": "micro_batch_size",
    "micro_batch": "micro_batch_size",
    "per_device_eval_batch_size": "batch_size",
    "eval_batch_size": "batch_size",
    "adam_beta1": "betas",
    "adam_beta2": "betas",
    "beta1": "betas",
    "beta2": "betas",
    "adam_epsilon": "eps",
    "epsilon": "eps",
    "bf16": "precision",
    "fp16": "precision",
    "dtype": "precision",
    "mixed_precision": "precision",
    "torch_compile": "compile",
    "use_cpu": "device",
    "gradient_checkpointing": "activation_checkpointing",
    "num_workers": "dataloader_num_workers",
    "pin_memory": "dataloader_pin_memory",
    "log_interval": "logging_steps",
    "eval_interval": "eval_steps",
    "save_interval": "save_steps",
    "patience": "early_stopping_patience",
    "metric_for_best_model": "best_metric",
    "dataset": "source",
    "dataset_name": "source",
    "dataset_config_name": "config",
    "train_file": "source",
    "data_files": "source",
    "path": "source",
    "text_field": "text_column",
    "text_column_name": "text_column",
    "dataset_text_field": "text_column",
    "seq_len": "block_size",
    "seq_length": "block_size",
    "sequence_length": "block_size",
    "sequence_len": "block_size",
    "max_seq_length": "block_size",
    "max_length": "block_size",
    "context_length": "block_size",
    "validation_split_percentage": "holdout",
    "val_size": "holdout",
    "test_size": "holdout",
    "max_train_samples": "max_documents",
    "preprocessing_num_workers": "num_proc",
    "packing": "document_mask",
    "tokenizer_name": "pretrained",
    "tokenizer_name_or_path": "pretrained",
    "model_name": "pretrained",
    "model_name_or_path": "pretrained",
    "base_model": "pretrained",
    "init_from": "pretrained",
    "model_type": "family",
    "architecture": "family",
    "num_hidden_layers": "n_layer",
    "num_layers": "n_layer",
    "n_layers": "n_layer",
    "depth": "n_layer",
    "num_attention_heads": "n_head",
    "num_heads": "n_head",
    "n_heads": "n_head",
    "hidden_size": "n_embd",
    "d_model": "n_embd",
    "dim": "n_embd",
    "embed_dim": "n_embd",
    "intermediate_size": "n_inner",
    "max_position_embeddings": "n_positions",
    "resid_pdrop": "dropout",
    "embd_pdrop": "dropout",
    "attn_pdrop": "dropout",
    "hub_model_id": "model_id",
    "hub_private_repo": "private",
    "push_to_hub": "push",
    "random_seed": "seed",
    "out_dir": "output_dir",
}


def snake_case(key: str) -> str:
    """Convert `learningRate` and `Learning-Rate` to `learning_rate`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key).replace("-", "_").lower()


def closest_key(key: str, known: Iterable[str]) -> str | None:
    """Return the known key that an unknown key most likely means; None if none is similar."""
    known = list(known)
    word = snake_case(key)
    if word in known:
        return word
    if ALIASES.get(word) in known:
        return ALIASES[word]
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.7)
    return near[0] if near else None


def nearest(key: str, known: Iterable[str]) -> str:
    """Return a hint for an unknown key: the closest known key, or all known keys."""
    known = sorted(known)
    guess = closest_key(key, known)
    if guess:
        return f'did you mean "{guess}"?'
    return f"known keys: {', '.join(known)}" if len(known) <= 40 else "no known key is similar"
