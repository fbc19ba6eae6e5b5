"""Format the plan and the result of a run as lines of text."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.text import Text

from hf_lm.evaluation.metrics import metric_rows
from hf_lm.recipe import DataRecipe, Recipe, TrainingRecipe, count_steps, warnings
from hf_lm.run_dir.compatibility import numerics_changes
from hf_lm.run_dir.directory import METRICS, RunDirectory, TrainResult
from hf_lm.terminal import console
from hf_lm.terminal.console import duration, short, show_rows

if TYPE_CHECKING:
    from hf_lm.data.blocks.dataset import SplitCounts
    from hf_lm.data.text.scan import Scan
    from hf_lm.planning.hardware import Hardware
    from hf_lm.planning.kernels import Kernels
    from hf_lm.planning.plan import Plan
    from hf_lm.workflows.train import RunContext

Row = tuple[str, str]  # a label and a text


def show_plan(
    context: RunContext, scan: Scan, provenance: Mapping[str, Any], notes: Sequence[str]
) -> None:
    """Show what a run will do, with warnings and notes.

    Args:
        context: the run.
        scan: what was found in its text.
        provenance: what its weights depend on, compared with the run in the same directory.
        notes: other notes.
    """
    from hf_lm.data.blocks.byte_counts import bytes_note
    from hf_lm.model.pretrained import pretrained_notes
    from hf_lm.planning.advice import advice

    recipe = context.recipe
    show_rows(
        recipe.name,
        [
            *text_rows(recipe.data, context.blocks.counts),
            *run_rows(recipe, context.plan, context.hardware, context.kernels),
        ],
        notes=[
            *(*warnings(recipe), *advice(recipe, context.plan)),
            *(*pretrained_notes(recipe.model), *scan.notes, *notes),
            *bytes_note(context.tokenizer, recipe.data),
            *numerics_changes(context.run_dir.provenance, provenance),
        ],
    )


def show_result(result: TrainResult, *, chat: bool) -> None:
    """Show the samples and metrics of a finished run, and the commands that use the model."""
    console.console.print()
    show_samples(result.samples, chat=chat)
    metrics = result.metrics
    path = short(result.model_path)
    quoted = shlex.quote(path)
    prompt = next((s["prompt"] for s in result.samples if s["prompt"]), "Once upon a time")
    options = f"{' --chat' * chat} --prompt {shlex.quote(prompt)}"
    training = (
        f"{metrics['train_tokens']:,} tokens in {duration(metrics['train_seconds'])}, "
        f"{metrics['tokens_per_second']:,.0f} tokens per second"
    )
    show_rows(
        "done",
        [
            *metric_rows(metrics),
            ("training", training),
            ("curves", f"hf-lm report {shlex.quote(short(result.model_path.parent))}"),
            ("model", path),
            ("generate", f"hf-lm generate {quoted}{options}"),
            ("evaluate", f"hf-lm evaluate {quoted} --source YOUR_TEXT"),
            ("in Python", f'AutoModelForCausalLM.from_pretrained("{path}")'),
        ],
    )


def show_samples(samples: Sequence[Mapping[str, str]], *, chat: bool) -> None:
    """Show each prompt in bold with what the model adds; an answer starts on a new line."""
    separator = "\n" if chat else ""
    for sample in samples:
        console.console.print(Text("sample", style="bold cyan"))
        console.console.print(Text.assemble((sample["prompt"], "bold"), separator, sample["text"]))
        console.console.print()


def show_complete(run_dir: RunDirectory) -> TrainResult:
    """Say that a run is complete already, and return its result."""
    path = short(run_dir.model)
    console.console.print(f"already complete: {path}; start over with --fresh")
    samples = [row["samples"] for row in run_dir.log.rows() if "samples" in row]
    return TrainResult(run_dir.model, run_dir.read(METRICS), samples[-1] if samples else [])


def run_rows(recipe: Recipe, plan: Plan, hardware: Hardware, kernels: Kernels) -> list[Row]:
    """Return the lines of the plan about the run; those about its text come before them."""
    threads = f", {hardware.threads} threads each" if hardware.device == "cpu" else ""
    processes = f"{hardware.world_size} × " if hardware.world_size > 1 else ""
    return [
        *plan_rows(recipe.training, plan),
        rate_row(recipe.training, plan.max_steps),
        ("machine", f"{processes}{hardware.name}{threads}, {hardware.precision}"),
        ("kernels", "; ".join(kernels.reasons)),
    ]


def plan_rows(training: TrainingRecipe, plan: Plan) -> list[Row]:
    """Return the lines about the model, its steps and their cost."""
    size = plan.model_size
    epochs = f", {plan.epochs:.2f} epochs" if plan.epochs else ""
    trained = f", {size.trained:,} of them trained" if size.trained < size.parameters else ""
    end = f"{training.max_minutes:g} minutes" if training.max_minutes else "its epochs"
    steps = f"as many steps as {end} have, which is not known yet"
    if plan.max_steps:
        steps = f"{plan.max_steps:,} steps, {plan.train_tokens:,} tokens{epochs}"
    return [
        (
            "model",
            f"{size.parameters:,} parameters{trained}: {size.n_layer} layers, width "
            f"{size.n_embd}, {size.vocab_size:,} tokens, context {plan.block_size}",
        ),
        (
            "step",
            f"{plan.tokens_per_step:,} tokens = {plan.micro_batch_size} blocks × "
            f"{plan.accumulation} accumulated × {plan.world_size} process(es), "
            f"{readable(plan.flops_per_step, 'FLOP')}",
        ),
        ("training", steps),
        (
            "cost",
            f"{readable(plan.flops, 'FLOP')}, about {readable(plan.memory, 'B')} of memory, "
            f"{readable(plan.checkpoint, 'B')} per checkpoint",
        ),
    ]


def readable(count: float, unit: str) -> str:
    """Format a number with three digits, an SI prefix and its unit."""
    for prefix in ("", "k", "M", "G", "T", "P"):
        if count < 1000:
            return f"{count:.3g} {prefix}{unit}"
        count /= 1000
    return f"{count:,.3g} E{unit}"


def text_rows(
    data: DataRecipe, counts: Mapping[str, SplitCounts], *, is_estimate: bool = False
) -> list[Row]:
    """Return the lines of the plan about the text."""
    about, uncounted = (
        "about " if is_estimate else "",
        "a stream" if data.streaming else "on the Hub",
    )
    rows = []
    for split, label in (("train", "text"), ("validation", "validation")):
        line = uncounted
        if split in counts:
            c = counts[split]
            padded = f", {c.padded_tokens:,} padded" if c.padded_tokens else ""
            in_loss = f", {c.completion_tokens:,} in the loss" if c.completion_tokens else ""
            line = (
                f"{about}{c.documents:,} documents, {c.tokens:,} tokens{in_loss}, "
                f"{c.blocks:,} blocks ({c.unused_tokens:,} tokens unused{padded})"
            )
        rows.append((label, line))
    return rows


def rate_row(training: TrainingRecipe, max_steps: int) -> Row:
    """Return the line of the plan about the learning rates, with every "auto" resolved."""
    peak = f"{training.optimizer} {training.learning_rate:.2g}"
    if training.optimizer == "muon":
        peak = f"muon {training.matrix_learning_rate:.2g}, adamw {training.learning_rate:.2g}"
    warmup = f"{count_steps(training.warmup_steps, max_steps):,} steps of warmup"
    decay = "constant"
    if training.schedule != "constant":
        decay = f"{training.schedule} to {training.min_lr_ratio:.0%}"
    row = f"{peak}; {warmup}, then {decay}; weight decay {training.weight_decay:.2g}"
    return "learning rates", row
