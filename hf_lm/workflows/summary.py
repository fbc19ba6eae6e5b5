"""Format the plan and the result of a run as lines of text."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from hf_lm.evaluation.metrics import metric_rows
from hf_lm.recipe import DataRecipe, Recipe, TrainingRecipe, count_steps
from hf_lm.terminal import console
from hf_lm.terminal.console import duration, short, show_rows

if TYPE_CHECKING:
    from hf_lm.data.blocks.dataset import SplitCounts
    from hf_lm.planning.hardware import Hardware
    from hf_lm.planning.kernels import Kernels
    from hf_lm.planning.plan import Plan
    from hf_lm.recipe import Recipe


def run_rows(
    recipe: Recipe, plan: Plan, machine: Hardware, kernels: Kernels
) -> list[tuple[str, str]]:
    """The lines of the plan about the run; those about its text go before them."""
    rates = rate_row(recipe.training, plan.max_steps)
    return [*plan.rows(), rates, *machine.rows(), *kernels.rows()]


def show_samples(samples: Sequence[Mapping[str, str]], *, chat: bool) -> None:
    """What the model writes, prompts in bold; an answer on a line of its own."""
    between = "\n" if chat else ""
    for sample in samples:
        console.console.print(Text("sample", style="bold cyan"))
        console.console.print(Text.assemble((sample["prompt"], "bold"), between, sample["text"]))
        console.console.print()


def show_end(
    model: Path,
    metrics: Mapping[str, Any],
    samples: Sequence[Mapping[str, str]],
    *,
    chat: bool = False,
) -> None:
    """The result of a run, and what to do with it."""
    console.console.print()
    show_samples(samples, chat=chat)
    seconds, speed = metrics["train_seconds"], metrics["tokens_per_second"]
    name = short(model)
    where = shlex.quote(name)
    prompt = next((s["prompt"] for s in samples if s["prompt"]), "Once upon a time")
    show_rows(
        "done",
        [
            *metric_rows(metrics),
            (
                "training",
                f"{metrics['train_tokens']:,} tokens in {duration(seconds)}, {speed:,.0f} a second",
            ),
            ("model", name),
            (
                "write with it",
                f"hf-lm generate {where}{' --chat' * chat} --prompt {shlex.quote(prompt)}",
            ),
            ("measure it", f"hf-lm evaluate {where} --source YOUR_TEXT"),
            ("in Python", f'AutoModelForCausalLM.from_pretrained("{name}")'),
        ],
    )


def show_complete(model: Path) -> None:
    """The same command again, after a run that is done."""
    console.console.print(f"already complete: {short(model)}; start anew with --fresh")


def text_rows(
    data: DataRecipe, counts: Mapping[str, SplitCounts], *, about: bool = False
) -> list[tuple[str, str]]:
    """The lines of the plan about the text; `about` marks an estimate."""
    mark, uncounted = "about " if about else "", "a stream" if data.streaming else "on the Hub"
    rows = []
    for split, label in (("train", "text"), ("validation", "held out")):
        c = counts.get(split)
        line = uncounted
        if c:
            padded = f", {c.padded_tokens:,} padded" if c.padded_tokens else ""
            learnt = f", {c.completion_tokens:,} of them learnt" if c.completion_tokens else ""
            line = (
                f"{mark}{c.documents:,} documents, {c.tokens:,} tokens{learnt}, "
                f"{c.blocks:,} blocks ({c.unused_tokens:,} tokens unused{padded})"
            )
        rows.append((label, line))
    return rows


def rate_row(training: TrainingRecipe, total: int) -> tuple[str, str]:
    """The line of the plan about the rates of a run of so many steps, each "auto" settled."""
    peak = f"{training.optimizer} {training.learning_rate:.2g}"
    if training.optimizer == "muon":
        peak = f"muon {training.matrix_learning_rate:.2g}, adamw {training.learning_rate:.2g}"
    warmup = f"{count_steps(training.warmup_steps, total):,} steps of warmup"
    then = "constant"
    if training.schedule != "constant":
        then = f"{training.schedule} to {training.min_lr_ratio:.0%}"
    return "rates", f"{peak}; {warmup}, then {then}; weight decay {training.weight_decay:.2g}"
