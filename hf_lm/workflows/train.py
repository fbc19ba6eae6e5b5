"""Build the trainer from what the stages made, train, save and evaluate.

The trainer calls the other stages through `TrainerHooks` and never imports them.
"""

from __future__ import annotations

import gc
import time
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from accelerate.utils import broadcast_object_list
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_lm.checkpoints.manifest import TRAINER_STATE
from hf_lm.checkpoints.store import CheckpointStore
from hf_lm.data.blocks.dataset import Blocks
from hf_lm.data.collator import make_collate
from hf_lm.errors import HfLmError, RecipeError
from hf_lm.evaluation.evaluate import evaluate
from hf_lm.evaluation.generate import generate_samples
from hf_lm.model.build import compile_blocks
from hf_lm.model.dropout import replace_dropout
from hf_lm.model.pretrained import load_pretrained, saved_dtype
from hf_lm.model.saving import save_model
from hf_lm.planning.agreement import gather
from hf_lm.planning.budget import COPY_SPEED, Timing, steps_in
from hf_lm.planning.costs import flops_per_token
from hf_lm.planning.hardware import Hardware, keep_freed_memory, peak_memory
from hf_lm.planning.kernels import Kernels
from hf_lm.planning.plan import Plan
from hf_lm.recipe import Recipe
from hf_lm.run_dir.directory import METRICS, RunDirectory, TrainResult
from hf_lm.system.files import Write, read_json, text_file, unwrap_os_errors
from hf_lm.system.launch import use_precision
from hf_lm.terminal.console import console, show_note
from hf_lm.terminal.progress import ProgressBar
from hf_lm.terminal.trouble import TroubleNotes
from hf_lm.tokenizer import token_bytes, tokenizer_texts
from hf_lm.training.arguments import training_arguments
from hf_lm.training.callbacks import StepClock, isolate_tracker
from hf_lm.training.failures import explain_failures
from hf_lm.training.optimizer import build_optimizer
from hf_lm.training.schedule import build_lr_schedule, rate_note
from hf_lm.training.trainer import LMTrainer, TrainerHooks, build_trainer
from hf_lm.workflows.publish import start_background_uploads, write_card

NEVER = 10**9  # steps, for a trial
TRIAL_BLOCKS = 256  # blocks that a trial evaluates

SAVED_LOSS_ERROR = 0.02  # relative; weights that are rounded to bf16 differ by less


class RunContext(NamedTuple):
    """Everything that the stages made for one run."""

    recipe: Recipe
    run_dir: RunDirectory
    hardware: Hardware
    tokenizer: PreTrainedTokenizerBase
    blocks: Blocks
    model: PreTrainedModel
    plan: Plan
    kernels: Kernels

    @property
    def is_chat(self) -> bool:
        """True if the model is trained on conversations with a chat template."""
        learns_answers = self.recipe.data.train_on == "completion"
        return learns_answers and self.tokenizer.chat_template is not None


def train_and_evaluate(context: RunContext) -> TrainResult:
    """Train from the newest valid checkpoint, save the model and evaluate what was saved."""
    run_dir = context.run_dir
    uploader = start_background_uploads(context.recipe, run_dir)
    store = make_store(context, on_saved=uploader.submit if uploader else lambda path: None)
    checkpoint = latest_checkpoint(store, context.hardware)
    run_dir.log.truncate(int(checkpoint.name.split("-")[1]) if checkpoint else None)
    if checkpoint and context.hardware.is_main:
        show_extension(context, checkpoint)
    hooks = make_hooks(context)
    trainer = make_trainer(context, hooks, store, is_new=checkpoint is None)
    is_pretrained = context.recipe.model.pretrained is not None
    for shown in (ProgressBar(console), TroubleNotes(show_note, pretrained=is_pretrained)):
        trainer.add_callback(shown)
    with explain_failures(context.plan.micro_batch_size):
        trainer.train_from(checkpoint)
    if context.hardware.is_main:
        store.remove_leftovers()  # checkpoints that could not be deleted at once
        if run_dir.log.error:
            show_note(f"{run_dir.log.error}; rows of the log are missing")
    result = save_and_evaluate(context, hooks, trainer)
    if uploader:
        uploader.close()
    return result


def make_store(context: RunContext, *, on_saved: Write) -> CheckpointStore:
    """Make the store of the run's checkpoints; each checkpoint also holds the tokenizer.

    Args:
        context: the run.
        on_saved: called with each checkpoint, before an older one is deleted.
    """
    provenance, texts = dict[str, Any](), dict[str, str]()
    if context.run_dir.is_main_process:  # the only process that writes checkpoints
        provenance = context.run_dir.checkpoint_provenance()
        texts = tokenizer_texts(context.tokenizer)
    return CheckpointStore(
        context.run_dir.path,
        limit=context.recipe.training.save_total_limit,
        provenance=provenance,
        extra={name: text_file(text) for name, text in texts.items()},
        before_write=context.run_dir.log.flush_to_disk,
        on_saved=on_saved,
    )


def latest_checkpoint(store: CheckpointStore, hardware: Hardware) -> Path | None:
    """Find the checkpoint to continue from on the main process and tell all others."""
    latest = [None]
    if hardware.is_main:
        store.remove_leftovers()
        latest = [store.latest_valid(notify=show_note)]
    return broadcast_object_list(latest)[0] if hardware.world_size > 1 else latest[0]


def show_extension(context: RunContext, checkpoint: Path) -> None:
    """Show how the learning rate changes if the run has more steps than its checkpoint expects."""
    state = read_json(checkpoint / TRAINER_STATE)
    recipe, total = context.recipe.training, context.plan.max_steps
    note = rate_note(recipe, step=state["global_step"], before=state["max_steps"], total=total)
    if state["max_steps"] < total and note:
        show_note(note)


def make_hooks(context: RunContext) -> TrainerHooks:
    """Make the functions that the trainer calls: optimizer, schedule, evaluation and others."""
    recipe, hardware = context.recipe, context.hardware
    return TrainerHooks(
        make_optimizer=partial(
            build_optimizer, recipe=recipe.training, precision=hardware.precision
        ),
        make_schedule=partial(build_lr_schedule, recipe=recipe.training),
        evaluate=partial(
            evaluate,
            blocks=context.blocks.splits["validation"],
            recipe=recipe.evaluation,
            collate=make_collate(recipe.data, context.tokenizer, split="validation"),
            token_bytes=token_bytes(context.tokenizer),
            **hardware.shard(),
        ),
        generate_samples=partial(
            generate_samples,
            tokenizer=context.tokenizer,
            prompts=recipe.evaluation.prompts,
            max_new_tokens=recipe.evaluation.max_new_tokens,
            seed=recipe.seed,
            chat=context.is_chat,
        ),
        write_row=context.run_dir.log.append,
        flops_per_token=flops_per_token(context.plan.model_size, context.plan.block_size),
        peak_flops=hardware.peak_flops,
        order=context.blocks.order,
        max_nonfinite_steps=recipe.training.skip_nonfinite_steps,
        spike_threshold=recipe.training.skip_loss_spikes,
    )


def limit_to_minutes(context: RunContext) -> RunContext:
    """Give a run the optimizer steps that its minutes have on this machine.

    A run that continues keeps its steps, so that it ends in the bits of an uninterrupted one.

    Raises:
        RecipeError: the minutes are too short for one step, or the disk for their checkpoints.
    """
    minutes = context.recipe.training.max_minutes
    if minutes is None:
        return context
    steps = context.run_dir.steps_of(minutes)
    if steps is None:
        # The slowest process counts, and all have the same number of steps.
        timings = gather(time_parts(context), context.hardware)
        gc.collect()  # the trial's model and trainer refer to each other
        slowest = Timing(*map(max, zip(*timings, strict=True)))
        steps = steps_in(context.recipe.training, slowest)
    plan = context.plan.with_steps(steps, context.recipe.training)
    if shortfall := context.run_dir.disk_shortfall(plan.disk):
        raise RecipeError(shortfall)
    return context._replace(plan=plan)


def time_parts(context: RunContext) -> Timing:
    """Measure the parts of training on this machine, with a copy of the model that is given up.

    The copy trains on the validation set, so that a stream of training text stays where it is. The
    real trainer seeds every random generator when it is made, so the trial leaves no trace.
    """
    recipe, blocks = context.recipe, context.blocks.splits["validation"]
    count = min(len(blocks), recipe.evaluation.max_blocks or len(blocks))
    sample = min(count, TRIAL_BLOCKS)
    trial = {"eval_steps": NEVER, "save_steps": NEVER, "logging_steps": NEVER, "report_to": "none"}
    trial |= {"early_stopping_patience": None, "load_best_model_at_end": False}
    sections = {
        "training": recipe.training.model_copy(update=trial),
        "evaluation": recipe.evaluation.model_copy(update={"max_blocks": sample}),
    }
    context = context._replace(
        recipe=recipe.model_copy(update=sections),
        model=deepcopy(context.model),
        plan=replace(context.plan, max_steps=NEVER),
        blocks=Blocks({"train": blocks, "validation": blocks}, {}),
    )
    hooks = replace(make_hooks(context), write_row=lambda row: None)
    with TemporaryDirectory() as folder, explain_failures(context.plan.micro_batch_size):
        store = CheckpointStore(Path(folder))
        trainer = make_trainer(context, hooks, store, is_new=False)
        clock = StepClock(trainer.all_reduce_max)
        trainer.add_callback(clock)
        trainer.train()
        trainer.evaluate()  # compiles what it needs
        times = [time.monotonic()]
        hooks.evaluate(trainer.model)
        times.append(time.monotonic())
        hooks.generate_samples(trainer.model)
        times.append(time.monotonic())
    evaluation = (times[1] - times[0]) * count / sample + times[2] - times[1]
    return Timing(clock.seconds_per_step, evaluation, context.plan.checkpoint / COPY_SPEED)


def make_trainer(
    context: RunContext, hooks: TrainerHooks, store: CheckpointStore, *, is_new: bool
) -> LMTrainer:
    """Build the trainer of the recipe as planned for this machine.

    Args:
        context: the run.
        hooks: what the trainer calls.
        store: where its checkpoints go.
        is_new: whether the run starts at step 0; pretrained weights are evaluated first then.
    """
    recipe = context.recipe
    if (note := use_precision(context.hardware.precision)) and context.hardware.is_main:
        show_note(note)
    args = training_arguments(
        recipe.training,
        output_dir=str(context.run_dir.path),
        run_name=recipe.name,
        seed=recipe.seed,
        data_seed=recipe.seed,
        eval_on_start=is_new and recipe.model.pretrained is not None,
        **context.plan.arguments(),
        **context.hardware.arguments(),
    )
    if context.hardware.device == "cpu":
        keep_freed_memory()
        replace_dropout(context.model)
    if context.kernels.compile:
        compile_blocks(context.model)
    trainer = build_trainer(
        recipe.training,
        args,
        hooks=hooks,
        checkpoints=store,
        notify=show_note,
        model=context.model,
        train_dataset=context.blocks.splits["train"],
        eval_dataset=context.blocks.splits["validation"],
        processing_class=context.tokenizer,
        data_collator=make_collate(recipe.data, context.tokenizer, split="train"),
    )
    for callback in trainer.callback_handler.callbacks:
        if type(callback).__module__.startswith("transformers.integrations"):
            isolate_tracker(callback, notify=show_note)
    return trainer


def save_and_evaluate(context: RunContext, hooks: TrainerHooks, trainer: LMTrainer) -> TrainResult:
    """Save the model, load it as a user would, and evaluate it in fp32."""
    run_dir = context.run_dir
    seconds, tokens = trainer.throughput.seconds, trainer.update_token_count()
    with unwrap_os_errors(run_dir.model):
        run_dir.save_model(partial(save_checked, context))
    trainer.accelerator.wait_for_everyone()
    model = load_pretrained(str(run_dir.model)).to(trainer.args.device)
    tokens_per_second = tokens / seconds
    metrics = {
        **hooks.evaluate(model),
        "train_tokens": tokens,
        "train_seconds": round(seconds, 3),
        "tokens_per_second": tokens_per_second,
        "mfu": tokens_per_second * hooks.flops_per_token / context.hardware.peak_flops,
        "peak_memory_bytes": peak_memory(context.hardware.device),
        "train_flops": tokens * hooks.flops_per_token,
        "parameters": context.plan.model_size.parameters,
    }
    run_dir.write(METRICS, metrics)
    if run_dir.is_main_process:
        write_card(run_dir, context.recipe, run_dir.model)
    return TrainResult(run_dir.model, metrics, hooks.generate_samples(model))


def save_checked(context: RunContext, folder: Path) -> None:
    """Save the model, and check that it has the loss of the trained one when it is loaded.

    Raises:
        HfLmError: it has another loss.
    """
    recipe = context.recipe
    score = partial(
        evaluate,
        blocks=[context.blocks.splits["validation"][0]],
        recipe=recipe.evaluation,
        collate=make_collate(recipe.data, context.tokenizer, split="validation"),
        token_bytes=token_bytes(context.tokenizer),
    )
    trained = score(context.model)["loss"]
    merge = recipe.model.lora is not None and recipe.model.lora.merge
    dtype = saved_dtype(recipe.model)
    save_model(context.model, context.tokenizer, folder, merge=merge, dtype=dtype)
    saved = score(load_pretrained(str(folder)).to(context.model.device))["loss"]
    if abs(saved - trained) > SAVED_LOSS_ERROR * max(1.0, trained):
        raise HfLmError(
            f"the saved model has loss {saved:.4f} on the first validation block, and the trained "
            f"one {trained:.4f}: a defect of hf_lm or of the class of the model; please report it; "
            "the checkpoints of the run are whole"
        )
