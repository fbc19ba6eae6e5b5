"""The main path and its command line: one recipe in; a trained, measured model out.

    accelerate launch -m hf_lm.run RECIPE [--set section.key=value ...] [--check] [--fresh]

`train_in` is the table of contents. Everything is imported where it is used, and the heavy
libraries behind the checks of the recipe and its text: --help and mistakes are answered at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_lm import __version__
from hf_lm.errors import RecipeError
from hf_lm.guarded import guarded
from hf_lm.options import add_options

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hf_lm.dataset import Corpus, Scan, Text
    from hf_lm.dataset.blocks import Blocks
    from hf_lm.kernels import Kernels
    from hf_lm.machine import Machine
    from hf_lm.model_config import Vocabulary
    from hf_lm.plan import Plan
    from hf_lm.recipe import Recipe
    from hf_lm.run_folder import RunFolder


def train(
    recipe: Recipe, *, accepted: Sequence[str] = (), force_unlock: bool = False
) -> Mapping[str, Any]:
    """Recipe in, metrics out; everything else lands in recipe.output_dir, held meanwhile."""
    from hf_lm.publish import published
    from hf_lm.run_folder import RunFolder

    folder = RunFolder(recipe.folder)
    with folder.held(force=force_unlock) as notes, published(folder, recipe):
        return train_in(folder, recipe, accepted, notes)


def train_in(
    folder: RunFolder, recipe: Recipe, accepted: Sequence[str], notes: Sequence[str]
) -> Mapping[str, Any]:
    """The way of the data, stage by stage."""
    from hf_lm import console
    from hf_lm.changes import drift
    from hf_lm.dataset import text_rows
    from hf_lm.publish import saves
    from hf_lm.recipe import warnings
    from hf_lm.run_folder import METRICS, describe_run

    changed = folder.refuse_changes(recipe, accepted)
    corpus, scan = read_corpus(recipe)
    if folder.done and not changed:
        console.show_complete(folder.model)
        return folder.read(METRICS)
    prepare_libraries(recipe, corpus)  # before they are imported

    from hf_lm.fit import Run, fit
    from hf_lm.model_config import Vocabulary
    from hf_lm.tokenizer import tokenizer_hash

    machine = require_machine(recipe)
    text, tokenizer = read_text(recipe, corpus, scan)
    blocks = make_blocks(recipe, text, tokenizer, **machine.share())
    vocabulary = Vocabulary.of(tokenizer)
    model, plan, kernels = make_planned(recipe, vocabulary, machine, blocks.counts, folder)
    found = (machine, plan, kernels, text, blocks)
    facts = {name: fact for stage in found for name, fact in stage.facts().items()}
    hashes = text.content, tokenizer_hash(tokenizer, chat=recipe.data.train_on == "completion")
    provenance = describe_run(*hashes, facts)
    console.show_rows(
        recipe.name,
        [*text_rows(recipe.data, blocks.counts), *run_rows(recipe, plan, machine, kernels)],
        notes=[
            *warnings(recipe),
            *(text.scan or scan).notes,
            *notes,
            *changed.values(),
            *drift(folder.provenance, provenance),
        ],
    )

    with folder.recorded(recipe, provenance, accepted), saves(folder, recipe) as offer:
        run = Run(recipe, folder, machine, tokenizer, blocks, model, plan, kernels)
        metrics, samples = fit(run, offer)
    console.show_end(folder.model, metrics, samples, chat=run.chat)
    return metrics


def read_corpus(recipe: Recipe) -> tuple[Corpus, Scan]:
    """The sources of the recipe, read once to find what cannot be trained on."""
    from hf_lm import console
    from hf_lm.dataset import find_corpus, scan_documents

    corpus = find_corpus(recipe.data)
    with console.preparing("read", corpus.size) as report:
        return corpus, scan_documents(recipe.data, corpus, keep=True, report=report)


def prepare_libraries(recipe: Recipe, corpus: Corpus) -> None:
    """Make them quiet; where the recipe names something on the Hub, find out whether it answers.

    A run that is published has found that out already, and needs it again.
    """
    from hf_lm import console

    console.quiet_libraries()
    names = (recipe.model.pretrained, recipe.tokenizer.pretrained)
    named = any(name and not Path(name).is_absolute() for name in names)
    if recipe.hub.push == "never" and (named or not corpus.local):
        from hf_lm.hub import settle_offline

        settle_offline(console.show_note)


def read_text(recipe: Recipe, corpus: Corpus, scan: Scan) -> tuple[Text, PreTrainedTokenizerBase]:
    """The documents of the recipe and the tokenizer for them."""
    from hf_lm.dataset import load_documents
    from hf_lm.tokenizer import build_tokenizer

    text = load_documents(recipe.data, corpus, scan)
    default = recipe.model.pretrained or corpus.tokenizer
    return text, build_tokenizer(recipe.tokenizer, text.documents, default=default)


def make_blocks(
    recipe: Recipe, text: Text, tokenizer: PreTrainedTokenizerBase, **place: int
) -> Blocks:
    """The blocks of those documents, with a bar for whoever waits while they are prepared."""
    from hf_lm import console
    from hf_lm.dataset import Share, load_blocks

    share = Share(**place, threads=max(1, recipe.training.dataloader_num_workers))
    with console.preparing("tokenize", text.size) as report:
        return load_blocks(
            recipe.data,
            text,
            tokenizer,
            seed=recipe.seed,
            held_out=recipe.evaluation.max_blocks,
            share=share,
            report=report,
        )


def make_model(recipe: Recipe, vocabulary: Vocabulary, **options: Any) -> PreTrainedModel:
    """The network the recipe describes, for its blocks."""
    from hf_lm.model import build_model

    return build_model(
        recipe.model,
        vocabulary,
        block_size=recipe.data.block_size,
        seed=recipe.seed,
        added=len(recipe.tokenizer.add_tokens),
        **options,
    )


def plan_run(
    recipe: Recipe, vocabulary: Vocabulary, machine: Machine, counts: Mapping[str, Any]
) -> tuple[Plan, Kernels]:
    """What the run will do on this machine and how, from a network without weights."""
    from hf_lm.kernels import choose_kernels
    from hf_lm.plan import describe_network, make_plan

    model = make_model(recipe, vocabulary, meta=True)
    plan = make_plan(
        recipe.training,
        describe_network(model),
        block_size=recipe.data.block_size,
        train_blocks=counts["train"].blocks if "train" in counts else None,
        world_size=machine.world_size,
        memory=machine.memory,
    )
    kernels = choose_kernels(
        recipe,
        device=machine.device,
        precision=machine.precision,
        model_type=model.config.model_type,
        flops=plan.flops,
    )
    return plan, kernels


def make_planned(
    recipe: Recipe,
    vocabulary: Vocabulary,
    machine: Machine,
    counts: Mapping[str, Any],
    folder: RunFolder,
) -> tuple[PreTrainedModel, Plan, Kernels]:
    """The network, and the plan with a number for the micro-batch "auto".

    A GPU is tried; of a CPU the estimate is taken. Rounding depends on the number, so a continued
    run keeps the one its folder has, whatever else fills the memory by now.
    """
    plan, kernels = plan_run(recipe, vocabulary, machine, counts)
    refuse((*plan.missing, *folder.missing_disk(plan.disk)))
    model = make_model(recipe, vocabulary, attention=kernels.attention)
    if recipe.training.micro_batch_size != "auto":
        return model, plan, kernels
    if folder.micro_batch_size in plan.micro_batch_sizes:
        plan = plan.holding(folder.micro_batch_size)
    elif machine.device == "cuda":
        from hf_lm.micro_batch import find_micro_batch

        size = find_micro_batch(
            model,
            plan.micro_batch_sizes,
            block_size=plan.block_size,
            dtype=machine.dtype,
            held=plan.held,
            recompute=plan.recompute,
        )
        plan = plan.holding(size)
    return model, plan, kernels


def run_rows(
    recipe: Recipe, plan: Plan, machine: Machine, kernels: Kernels
) -> list[tuple[str, str]]:
    """The lines of the plan about the run; those about its text go before them."""
    from hf_lm.recipe import rate_row

    rates = rate_row(recipe.training, plan.max_steps)
    return [*plan.rows(), rates, *machine.rows(), *kernels.rows()]


def require_machine(recipe: Recipe) -> Machine:
    """This machine, which can do what the recipe asks for."""
    from hf_lm.machine import find_machine

    machine = find_machine(recipe.training)
    refuse(machine.missing)
    return machine


def refuse(missing: Sequence[str]) -> None:
    """End a run that its machine cannot do; a check, which may be of a run elsewhere, says it."""
    if missing:
        raise RecipeError(missing)


def check(recipe: Recipe) -> None:
    """Everything that can be known without training, and the plan; nothing is written."""
    from hf_lm.dataset import (
        find_corpus,
        sample_counts,
        sample_documents,
        scan_documents,
        text_rows,
    )
    from hf_lm.hub import refuse_access
    from hf_lm.recipe import warnings
    from hf_lm.run_folder import RunFolder

    folder = RunFolder(recipe.folder)
    folder.refuse_others()
    folder.refuse_changes(recipe, ())
    access = refuse_access(recipe.hub, create=False) if recipe.hub.push != "never" else []
    corpus = find_corpus(recipe.data)
    scan = scan_documents(recipe.data, corpus)

    from hf_lm import console
    from hf_lm.machine import find_machine
    from hf_lm.model_config import Vocabulary
    from hf_lm.tokenizer import bpe_size, build_tokenizer, trains_bpe

    prepare_libraries(recipe, corpus)
    machine = find_machine(recipe.training)
    sample = sample_documents(recipe.data, corpus, scan)
    default = recipe.model.pretrained or corpus.tokenizer
    tokenizer = build_tokenizer(recipe.tokenizer, sample.documents, default=default)
    counts = sample_counts(recipe.data, sample, tokenizer)
    vocabulary = Vocabulary.of(tokenizer)
    if not sample.whole and trains_bpe(recipe.tokenizer, default=recipe.model.pretrained):
        vocabulary = vocabulary._replace(size=bpe_size(recipe.tokenizer))
    plan, kernels = plan_run(recipe, vocabulary, machine, counts)
    lacking = folder.missing_disk(plan.disk)
    missing = (*machine.missing, *plan.missing, *lacking)
    rows = text_rows(recipe.data, counts, about=not sample.whole)
    console.show_rows(
        f"{recipe.name}: checked, nothing written",
        [*rows, *run_rows(recipe, plan, machine, kernels)],
        notes=[
            *(*warnings(recipe), *access, *scan.notes, *sample.notes),
            *(f"not on this machine: {line}" for line in missing),
        ],
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line of a run; returns its exit code."""
    options = argparse.ArgumentParser(
        prog="python -m hf_lm.run",
        description="Train or fine-tune a language model from one JSON recipe.",
    )
    options.add_argument("--version", action="version", version=f"hf_lm {__version__}")
    return guarded(partial(run, add_options(options).parse_args(arguments)))


def run(options: argparse.Namespace) -> None:
    """Check or train what the command line asks for."""
    from hf_lm.run_folder import fresh_path

    recipe = find_recipe(options)
    if options.fresh:
        recipe = recipe.model_copy(update={"output_dir": str(fresh_path(recipe.folder))})
    if options.check:
        check(recipe)
    else:
        train(recipe, accepted=options.accepted, force_unlock=options.force_unlock)


def find_recipe(options: argparse.Namespace) -> Recipe:
    """The recipe of a file, or of a published model; the paths of that one start here."""
    from hf_lm.recipe import load_recipe, make_recipe

    given = {"overrides": options.overrides, "pretrained": options.pretrained}
    if not options.recipe.startswith("hub:"):
        return load_recipe(options.recipe, **given)

    from hf_lm import console
    from hf_lm.hub import published_tree, settle_offline

    settle_offline(console.show_note)
    tree = published_tree(options.recipe)
    return make_recipe(tree, Path.cwd(), name=options.recipe, **given)


if __name__ == "__main__":
    sys.exit(main())
