"""The main path and its command line: one recipe in; a trained, measured model out.

    accelerate launch -m hf_lm.run RECIPE [--set section.key=value ...] [--check] [--fresh]

`train` is the table of contents. Everything is imported where it is used, and the heavy libraries
behind the checks of the recipe and its text: --help and mistakes are answered at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from hf_lm import __version__
from hf_lm.errors import EXIT_INTERRUPTED, EXIT_IO, HfLmError, RecipeError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hf_lm.dataset import Corpus, Scan, Text
    from hf_lm.dataset.blocks import Blocks
    from hf_lm.kernels import Kernels
    from hf_lm.machine import Machine
    from hf_lm.model_config import Vocabulary
    from hf_lm.plan import Plan
    from hf_lm.recipe import Recipe


def train(recipe: Recipe, *, accepted: Sequence[str] = ()) -> Mapping[str, Any]:
    """Recipe in, metrics out; everything else lands in recipe.output_dir."""
    from hf_lm import console
    from hf_lm.dataset import find_corpus, scan_documents, text_rows
    from hf_lm.recipe import warnings
    from hf_lm.run_folder import METRICS, RunFolder, describe_run

    folder = RunFolder(recipe.folder)
    changed = folder.refuse_changes(recipe, accepted)
    corpus = find_corpus(recipe.data)
    with console.preparing("read", corpus.size) as report:
        scan = scan_documents(recipe.data, corpus, keep=True, report=report)

    console.quiet_libraries()  # before they are imported

    from hf_lm.fit import Run, fit
    from hf_lm.machine import find_machine
    from hf_lm.model_config import Vocabulary
    from hf_lm.tokenizer import tokenizer_hash

    if folder.done and not changed:
        console.show_complete(folder.model)
        return folder.read(METRICS)
    machine = find_machine(recipe.training)
    refuse(machine.missing)
    text, tokenizer = read_text(recipe, corpus, scan)
    blocks = make_blocks(recipe, text, tokenizer, **machine.share())
    vocabulary = Vocabulary.of(tokenizer)
    model, plan, kernels = make_planned(
        recipe, vocabulary, machine, blocks.counts, earlier=folder.micro_batch_size
    )
    console.show_rows(
        recipe.name,
        [*text_rows(recipe.data, blocks.counts), *run_rows(plan, machine, kernels)],
        notes=[*warnings(recipe), *(text.scan or scan).notes],
    )

    facts = {**machine.facts(), **plan.facts(), **kernels.facts(), **text.facts()}
    facts["text"] = blocks.facts()
    provenance = describe_run(text.content, tokenizer_hash(tokenizer), facts)
    with folder.recorded(recipe, provenance, accepted):
        metrics, samples = fit(
            Run(recipe, folder, machine, tokenizer, blocks, model, plan, kernels)
        )
    console.show_end(folder.model, metrics, samples)
    return metrics


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
        recipe.model, vocabulary, block_size=recipe.data.block_size, seed=recipe.seed, **options
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
    *,
    earlier: int | None,
) -> tuple[PreTrainedModel, Plan, Kernels]:
    """The network, and the plan with a number for the micro-batch "auto".

    A GPU is tried; of a CPU the estimate is taken. Rounding depends on the number, so a continued
    run keeps its `earlier` one, whatever else fills the memory by now.
    """
    plan, kernels = plan_run(recipe, vocabulary, machine, counts)
    refuse(plan.missing)
    model = make_model(recipe, vocabulary, attention=kernels.attention)
    if recipe.training.micro_batch_size != "auto":
        return model, plan, kernels
    if earlier in plan.micro_batch_sizes:
        plan = plan.holding(earlier)
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


def run_rows(plan: Plan, machine: Machine, kernels: Kernels) -> list[tuple[str, str]]:
    """The lines of the plan about the run; those about its text go before them."""
    return [*plan.rows(), *machine.rows(), *kernels.rows()]


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
    from hf_lm.recipe import warnings
    from hf_lm.run_folder import RunFolder

    RunFolder(recipe.folder).refuse_changes(recipe, ())
    corpus = find_corpus(recipe.data)
    scan = scan_documents(recipe.data, corpus)

    from hf_lm import console
    from hf_lm.machine import find_machine
    from hf_lm.model_config import Vocabulary
    from hf_lm.tokenizer import bpe_size, build_tokenizer, trains_bpe

    console.quiet_libraries()
    machine = find_machine(recipe.training)
    sample = sample_documents(recipe.data, corpus, scan)
    default = recipe.model.pretrained or corpus.tokenizer
    tokenizer = build_tokenizer(recipe.tokenizer, sample.documents, default=default)
    counts = sample_counts(recipe.data, sample, tokenizer)
    vocabulary = Vocabulary.of(tokenizer)
    if not sample.whole and trains_bpe(recipe.tokenizer, default=recipe.model.pretrained):
        vocabulary = vocabulary._replace(size=bpe_size(recipe.tokenizer))
    plan, kernels = plan_run(recipe, vocabulary, machine, counts)
    missing = [f"not on this machine: {line}" for line in (*machine.missing, *plan.missing)]
    rows = text_rows(recipe.data, counts, about=not sample.whole)
    console.show_rows(
        f"{recipe.name}: checked, nothing written",
        [*rows, *run_rows(plan, machine, kernels)],
        notes=[*warnings(recipe), *scan.notes, *sample.notes, *missing],
    )


def add_options(options: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The options of a run; `hf-lm run` has the same."""
    options.add_argument("recipe", metavar="RECIPE", help="a JSON file; see recipes/README.md")
    add_overrides(options, "override one key of the recipe; may be given many times")
    options.add_argument(
        "--from",
        dest="pretrained",
        metavar="MODEL",
        help="fine-tune this model (a folder or Hub id) in place of the recipe's own",
    )
    options.add_argument(
        "--check", action="store_true", help="check everything, print the plan and stop"
    )
    options.add_argument(
        "--fresh", action="store_true", help="start over in a new folder; nothing is deleted"
    )
    options.add_argument(
        "--accept-change",
        dest="accepted",
        action="append",
        default=[],
        metavar="SECTION.KEY",
        help="continue a run although this changed; may be given many times",
    )
    return options


def add_overrides(options: argparse.ArgumentParser, text: str) -> None:
    """The option that overrides keys of a recipe."""
    options.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help=text,
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
    from hf_lm.recipe import load_recipe
    from hf_lm.run_folder import fresh_path

    recipe = load_recipe(options.recipe, overrides=options.overrides, pretrained=options.pretrained)
    if options.fresh:
        recipe = recipe.model_copy(update={"output_dir": str(fresh_path(recipe.folder))})
    if options.check:
        check(recipe)
    else:
        train(recipe, accepted=options.accepted)


def guarded(command: Callable[[], object]) -> int:
    """Run a command; a person's mistake is one line a problem on stderr, and an exit code."""
    speaks = os.environ.get("RANK", "0") == "0"
    try:
        command()
    except HfLmError as error:
        lines, code = error.problems, error.exit_code
    except KeyboardInterrupt:
        lines = ["interrupted; the same command continues from the last checkpoint"]
        code = EXIT_INTERRUPTED
    except OSError as error:
        if error.errno is None:
            raise
        lines, code = [f"{error.filename or 'I/O'}: {error.strerror}"], EXIT_IO
    else:
        return 0
    if speaks:
        sys.stderr.writelines(f"{line}\n" for line in lines)
    return code


if __name__ == "__main__":
    sys.exit(main())
