"""Train from one recipe: the main path and its command line.

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
from hf_lm.terminal.exit_code import run_command
from hf_lm.workflows.check import check
from hf_lm.workflows.stages import (
    make_blocks,
    make_planned,
    prepare_libraries,
    read_corpus,
    read_text,
    require,
)
from hf_lm.workflows.summary import run_rows

if TYPE_CHECKING:
    from hf_lm.planning.hardware import Hardware
    from hf_lm.recipe import Recipe
    from hf_lm.run_dir.directory import RunDirectory


def train(
    recipe: Recipe, *, accepted: Sequence[str] = (), force_unlock: bool = False
) -> Mapping[str, Any]:
    """Recipe in, metrics out; everything else lands in recipe.output_dir, held meanwhile."""
    from hf_lm.run_dir.directory import RunDirectory
    from hf_lm.workflows.publish import published

    folder = RunDirectory(recipe.folder)
    with folder.lock(force=force_unlock) as notes, published(folder, recipe):
        return train_in(folder, recipe, accepted, notes)


def train_in(
    folder: RunDirectory, recipe: Recipe, accepted: Sequence[str], notes: Sequence[str]
) -> Mapping[str, Any]:
    """The way of the data, stage by stage."""
    from hf_lm.recipe import warnings
    from hf_lm.run_dir.compatibility import numerics_changes
    from hf_lm.run_dir.directory import METRICS
    from hf_lm.run_dir.provenance import describe_run
    from hf_lm.terminal import console
    from hf_lm.workflows.publish import saves
    from hf_lm.workflows.summary import show_complete, show_end, text_rows

    changed = folder.check_compatible(recipe, accepted)
    corpus, scan = read_corpus(recipe)
    if folder.is_complete and not changed:
        show_complete(folder.model)
        return folder.read(METRICS)
    prepare_libraries(recipe, corpus)  # before they are imported

    from hf_lm.model.config import Vocabulary
    from hf_lm.tokenizer import tokenizer_hash
    from hf_lm.workflows.train import Run, fit

    machine = require_machine(recipe)
    text, tokenizer = read_text(recipe, corpus, scan)
    blocks = make_blocks(recipe, text, tokenizer, **machine.shard())
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
            *numerics_changes(folder.provenance, provenance),
        ],
    )

    with folder.track_status(recipe, provenance, accepted), saves(folder, recipe) as upload:
        run = Run(recipe, folder, machine, tokenizer, blocks, model, plan, kernels)
        metrics, samples = fit(run, upload)
    show_end(folder.model, metrics, samples, chat=run.chat)
    return metrics


def require_machine(recipe: Recipe) -> Hardware:
    """This machine, which can do what the recipe asks for."""
    from hf_lm.planning.hardware import detect_hardware

    machine = detect_hardware(recipe.training)
    require(machine.unmet_requirements)
    return machine


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line of a run; returns its exit code."""
    options = argparse.ArgumentParser(
        prog="python -m hf_lm.run",
        description="Train or fine-tune a language model from one JSON recipe.",
    )
    options.add_argument("--version", action="version", version=f"hf_lm {__version__}")
    return run_command(partial(run, add_options(options).parse_args(arguments)))


def run(options: argparse.Namespace) -> None:
    """Check or train what the command line asks for."""
    from hf_lm.run_dir.directory import next_free_path

    recipe = find_recipe(options)
    if options.fresh:
        recipe = recipe.model_copy(update={"output_dir": str(next_free_path(recipe.folder))})
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

    from hf_lm.hub.access import go_offline_if_unreachable
    from hf_lm.hub.download import fetch_recipe
    from hf_lm.terminal import console

    go_offline_if_unreachable(console.show_note)
    raw = fetch_recipe(options.recipe)
    return make_recipe(raw, Path.cwd(), name=options.recipe, **given)


def add_options(options: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The options of a run; `hf-lm run` has the same."""
    options.add_argument(
        "recipe",
        metavar="RECIPE",
        help="a JSON file, see recipes/README.md; or hub:USER/MODEL, the recipe of that model",
    )
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
    options.add_argument(
        "--force-unlock",
        action="store_true",
        help="take over a folder that a run on another machine seems to hold",
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


if __name__ == "__main__":
    sys.exit(main())
