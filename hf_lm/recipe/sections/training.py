"""Recipe section `training`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from hf_lm.recipe.sections.base import Section, Share, Steps

Rate = Annotated[float, Field(gt=0)] | Literal["auto"]


class TrainingRecipe(Section):
    """The length of training, its batches, its optimizer, and its checkpoints."""

    max_steps: int | None = Field(None, gt=0, description="optimizer steps")
    max_epochs: float | None = Field(None, gt=0, description="passes over the training blocks")
    max_tokens: int | None = Field(None, gt=0, description="tokens to train on, repeats included")
    max_minutes: float | None = Field(
        None,
        gt=0,
        description="minutes of training with its evaluations and checkpoints: a trial of seconds "
        "measures how many steps they are, and the run keeps that number",
    )
    tokens_per_step: int = Field(
        32_768, gt=0, description="tokens of one optimizer step, over all processes"
    )
    micro_batch_size: Annotated[int, Field(gt=0)] | Literal["auto"] = Field(
        "auto",
        description="blocks that a process trains on at once, at most: the largest number that "
        "divides its blocks of a step; gradient accumulation follows from it; auto: the most that "
        "fit the memory, found by trial on a GPU",
    )
    optimizer: Literal["auto", "muon", "adamw", "adam", "sgd"] = Field(
        "auto",
        description="muon: muon for matrices and adamw for the rest; adam adds weight decay to the "
        "gradient; auto: muon from scratch, adamw for pretrained weights",
    )
    learning_rate: Rate = Field(
        "auto",
        description="peak learning rate, with muon of everything but matrices; auto: 0.46/n_embd "
        "with adamw, 1.28/n_embd with muon, 5e-5 for pretrained weights, 2e-4 for adapters",
    )
    matrix_learning_rate: Rate = Field(
        "auto", description="peak learning rate of muon for matrices, at any width; auto: 0.02"
    )
    betas: tuple[Share, Share] = Field(
        (0.9, 0.95), description="decay rates of Adam's first and second moment"
    )
    momentum: float = Field(0.95, ge=0, lt=1, description="momentum of muon and sgd")
    eps: float = Field(1e-8, gt=0, description="Adam's epsilon")
    weight_decay: float = Field(0.1, ge=0, description="weight decay of matrices only")
    max_grad_norm: float = Field(1.0, ge=0, description="gradient norm to clip to; 0: no clipping")
    warmup_steps: Annotated[int, Field(ge=0)] | Share = Field(
        0.03, description="steps of linear warmup; below 1: fraction of all steps"
    )
    schedule: Literal["cosine", "linear", "wsd", "constant"] = Field(
        "cosine", description="decay after warmup; wsd: constant, then decay"
    )
    decay_steps: Steps = Field(
        0.2, description="steps of the decay at the end of wsd; below 1: fraction of all steps"
    )
    min_lr_ratio: float = Field(0.1, ge=0, le=1, description="final learning rate ÷ peak")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="autocast type; auto: bf16 if the hardware supports it"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto: CUDA if there is a device"
    )
    compile: bool | Literal["auto"] = Field(
        "auto",
        description="compile each block with torch.compile; auto: on CUDA, and on a CPU if it pays",
    )
    activation_checkpointing: bool = Field(
        False, description="recompute activations in the backward pass, to save memory"
    )
    dataloader_num_workers: int = Field(
        0, ge=0, description="processes that make batches; for a stream, threads that read"
    )
    dataloader_pin_memory: bool = Field(True, description="page-locked batches, for CUDA")
    logging_steps: int = Field(10, gt=0, description="steps between two rows of log.jsonl")
    eval_steps: Steps = Field(
        0.1, description="steps between evaluations; below 1: fraction of all steps"
    )
    save_steps: Steps = Field(
        0.1, description="steps between checkpoints; below 1: fraction of all steps"
    )
    save_total_limit: int | None = Field(
        2, gt=0, description="number of newest checkpoints to keep; null: all"
    )
    early_stopping_patience: int | None = Field(
        None, gt=0, description="evaluations without a better one before training stops"
    )
    load_best_model_at_end: bool = Field(
        False, description="use the checkpoint of the best evaluation, not the last one"
    )
    best_metric: Literal["loss", "perplexity", "accuracy", "bits_per_byte"] = Field(
        "loss", description="what makes an evaluation the best: the highest accuracy, or the lowest"
    )
    skip_nonfinite_steps: int = Field(
        0, ge=0, description="number of non-finite steps that are skipped; one more ends the run"
    )
    skip_loss_spikes: float | None = Field(
        None,
        gt=0,
        description="skip steps whose loss or gradient norm is this many standard deviations above "
        "the mean of the last 128 steps; 6 is usual",
    )
    report_to: Annotated[str, Field(min_length=1)] | tuple[str, ...] = Field(
        "none", description='trackers of transformers: "tensorboard", "wandb", "trackio", …'
    )
    extra_args: dict[str, Any] = Field(
        {}, description="any other TrainingArguments field, checked by name and type"
    )
