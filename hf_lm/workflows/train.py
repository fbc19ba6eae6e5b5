"""Build the trainer from what the stages made, train, save and evaluate.

`Run` is what the stages handed over. Here they are joined: the trainer calls the other stages
through `Hooks`, and never imports them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_lm.checkpoints.store import CheckpointStore
from hf_lm.data.blocks.dataset import Blocks
from hf_lm.data.collator import make_collate
from hf_lm.evaluation.evaluate import evaluate
from hf_lm.evaluation.generate import generate_samples
from hf_lm.hub.model_card import write_card
from hf_lm.model.build import compile_blocks
from hf_lm.model.dropout import replace_dropout
from hf_lm.model.pretrained import load_pretrained, save_model
from hf_lm.planning.costs import flops_per_token
from hf_lm.planning.hardware import Hardware, keep_freed_memory, peak_memory
from hf_lm.planning.kernels import Kernels
from hf_lm.planning.plan import Plan
from hf_lm.recipe import Recipe
from hf_lm.run_dir.directory import METRICS, RunDirectory
from hf_lm.system.files import text_file, unwrap_os_errors
from hf_lm.system.signals import default_signal_handlers
from hf_lm.terminal.console import console, show_note
from hf_lm.terminal.progress import ProgressBar
from hf_lm.tokenizer import token_bytes, tokenizer_texts
from hf_lm.training.arguments import training_arguments
from hf_lm.training.callbacks import isolate_tracker
from hf_lm.training.failures import explain_failures
from hf_lm.training.optimizer import build_optimizer
from hf_lm.training.schedule import build_lr_schedule
from hf_lm.training.trainer import LMTrainer, TrainerHooks, build_trainer


class Run(NamedTuple):
    """What the stages handed over; the trainer is made from it, and measured against it."""

    recipe: Recipe
    folder: RunDirectory
    machine: Hardware
    tokenizer: PreTrainedTokenizerBase
    blocks: Blocks
    model: PreTrainedModel
    plan: Plan
    kernels: Kernels

    @property
    def chat(self) -> bool:
        """Whether what is trained answers, by a chat template."""
        learns = self.recipe.data.train_on == "completion"
        return learns and self.tokenizer.chat_template is not None


def fit(run: Run, upload: Callable[[Path], None]) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """Train, from the newest checkpoint if there is one; save and measure.

    Args:
        run: what the stages handed over.
        upload: called with each checkpoint that is written.

    Returns:
        The contents of metrics.json, and a sample for each prompt.
    """
    checkpoints = make_checkpoints(run, upload)
    checkpoint = latest_checkpoint(checkpoints, run.machine)
    run.folder.log.truncate(int(checkpoint.name.split("-")[1]) if checkpoint else 0)
    hooks = make_hooks(run)
    trainer = make_trainer(run, hooks, checkpoints, begins=checkpoint is None)
    with explain_failures(run.plan.micro_batch_size):
        trainer.train_from(checkpoint)
    if run.machine.is_main:
        checkpoints.remove_leftovers()  # of what could not be deleted at once
        if run.folder.log.error:
            show_note(f"{run.folder.log.error}; rows are missing")
    return finish(run, hooks, trainer)


def make_checkpoints(run: Run, upload: Callable[[Path], None]) -> CheckpointStore:
    """Those of the run, with the tokenizer in each; the process that writes knows what goes in."""
    facts, texts = dict[str, Any](), dict[str, str]()
    if run.folder.is_main_process:
        facts, texts = run.folder.checkpoint_provenance(), tokenizer_texts(run.tokenizer)
    return CheckpointStore(
        run.folder.path,
        limit=run.recipe.training.save_total_limit,
        facts=facts,
        extra={name: text_file(text) for name, text in texts.items()},
        before_write=run.folder.log.flush_to_disk,
        on_saved=upload,
    )


def latest_checkpoint(checkpoints: CheckpointStore, machine: Hardware) -> Path | None:
    """The checkpoint that all processes go on from; the main one looks for it."""
    found = [None]
    with default_signal_handlers() if machine.world_size > 1 else nullcontext():
        state = PartialState(cpu=machine.device == "cpu")
    if state.is_main_process:
        checkpoints.remove_leftovers()
        found = [checkpoints.latest_valid(notify=show_note)]
    return broadcast_object_list(found)[0] if state.num_processes > 1 else found[0]


def make_hooks(run: Run) -> TrainerHooks:
    """What the trainer calls: our optimizer, schedule, evaluation, samples and log."""
    recipe = run.recipe
    return TrainerHooks(
        make_optimizer=partial(
            build_optimizer, recipe=recipe.training, precision=run.machine.precision
        ),
        make_schedule=partial(build_lr_schedule, recipe=recipe.training),
        evaluate=partial(
            evaluate,
            blocks=run.blocks.splits["validation"],
            recipe=recipe.evaluation,
            collate=make_collate(recipe.data, run.tokenizer, split="validation"),
            token_bytes=token_bytes(run.tokenizer),
            **run.machine.shard(),
        ),
        generate_samples=partial(
            generate_samples,
            tokenizer=run.tokenizer,
            prompts=recipe.evaluation.prompts,
            max_new_tokens=recipe.evaluation.max_new_tokens,
            seed=recipe.seed,
            chat=run.chat,
        ),
        write_row=run.folder.log.append,
        flops_per_token=flops_per_token(run.plan.model_size, run.plan.block_size),
        peak_flops=run.machine.peak_flops,
        sampler=run.blocks.sampler,
        max_nonfinite_steps=recipe.training.skip_nonfinite_steps,
        spike_threshold=recipe.training.skip_loss_spikes,
    )


def make_trainer(
    run: Run, hooks: TrainerHooks, checkpoints: CheckpointStore, *, begins: bool
) -> LMTrainer:
    """The trainer of the recipe, on this machine, as planned.

    What pretrained weights are worth is measured before a run begins, too.
    """
    recipe = run.recipe
    args = training_arguments(
        recipe.training,
        output_dir=str(run.folder.path),
        run_name=recipe.name,
        seed=recipe.seed,
        data_seed=recipe.seed,
        eval_on_start=begins and recipe.model.pretrained is not None,
        **run.plan.arguments(),
        **run.machine.arguments(),
    )
    if run.machine.device == "cpu":
        keep_freed_memory()
        replace_dropout(run.model)
    if run.kernels.compile:
        compile_blocks(run.model)
    trainer = build_trainer(
        recipe.training,
        args,
        hooks=hooks,
        checkpoints=checkpoints,
        notify=show_note,
        callbacks=[ProgressBar(console)],
        model=run.model,
        train_dataset=run.blocks.splits["train"],
        eval_dataset=run.blocks.splits["validation"],
        processing_class=run.tokenizer,
        data_collator=make_collate(recipe.data, run.tokenizer, split="train"),
    )
    for callback in trainer.callback_handler.callbacks:
        if type(callback).__module__.startswith("transformers.integrations"):
            isolate_tracker(callback, notify=show_note)
    return trainer


def finish(
    run: Run, hooks: TrainerHooks, trainer: LMTrainer
) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """Save the model, load it as a user would, and measure what was saved, in fp32."""
    seconds, tokens, lora = trainer.clock.seconds, trainer.tokens, run.recipe.model.lora
    base = run.recipe.model.pretrained if lora and lora.merge else None
    with unwrap_os_errors(run.folder.model):
        run.folder.save_model(partial(save_model, run.model, run.tokenizer, base=base))
    trainer.accelerator.wait_for_everyone()
    model = load_pretrained(str(run.folder.model)).to(trainer.args.device)
    speed, peak = tokens / seconds, run.machine.peak_flops
    metrics = {
        **hooks.evaluate(model),
        "train_tokens": tokens,
        "train_seconds": round(seconds, 3),
        "tokens_per_second": speed,
        "mfu": speed * hooks.flops_per_token / peak,
        "peak_memory_bytes": peak_memory(run.machine.device),
        "train_flops": tokens * hooks.flops_per_token,
        "parameters": run.plan.model_size.parameters,
    }
    run.folder.write(METRICS, metrics)
    if run.folder.is_main_process:
        write_card(run.folder.model, run.folder.path, run.recipe, run.folder.log.rows())
    return metrics, hooks.generate_samples(model)
