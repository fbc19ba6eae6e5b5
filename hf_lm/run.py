"""Train from one recipe: the main path and its command line.

    accelerate launch -m hf_lm.run RECIPE [--set section.key=value ...] [--check] [--fresh]

Heavy libraries are imported where they are used, after the recipe and its text are known to be
good: `--help` and a bad recipe are answered at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from hf_lm import __version__
from hf_lm.system.launch import check_launcher
from hf_lm.terminal.exit_code import run_command, unexpected_as_error

if TYPE_CHECKING:
    from hf_lm.recipe import Recipe
    from hf_lm.workflows.train import TrainResult


def train(
    recipe: Recipe, *, accept_changes: Sequence[str] = (), force_unlock: bool = False
) -> TrainResult:
    """Run every stage of a recipe; everything is written to its output directory.

    Running the same recipe again continues from the newest valid checkpoint and ends in the same
    bits; a run that is complete is not trained again.

    Args:
        recipe: as `load_recipe` returns it.
        accept_changes: keys such as "data.source" that may differ from the run in that directory.
        force_unlock: take over a directory that a run on another machine seems to hold.

    Returns:
        The path of the model, its metrics on the validation set, and a sample per prompt.

    Raises:
        RecipeError: this machine or its launcher cannot run the recipe.
        DataError: the text cannot be used.
        MismatchError: the directory holds a run of another recipe, text or tokenizer.
        LockedError: another run holds the directory.
        CheckpointError: there are checkpoints, and none is valid.
        NonFiniteError: the loss or its gradient became NaN or infinite.
        StoppedError: a signal came; a checkpoint of that step was written.
        UploadError: the model was trained and not uploaded.

    Example:
        >>> recipe = load_recipe("recipes/small.json", overrides=["training.max_steps=200"])
        >>> result = train(recipe)
        >>> result.metrics["bits_per_byte"]
    """
    from hf_lm.run_dir.directory import RunDirectory
    from hf_lm.workflows import publish, stages, summary

    check_launcher()
    run_dir = RunDirectory(recipe.folder)
    with run_dir.lock(force=force_unlock) as lock_notes:
        publish.check_upload(recipe.hub, run_dir)  # before any work
        recipe = run_dir.with_earlier_values(recipe)
        changes = run_dir.check_compatible(recipe, accept_changes)
        corpus, scan = stages.read_corpus(recipe.data)  # names every bad file, without torch
        if run_dir.is_complete and not changes:
            result = summary.show_complete(run_dir)
        else:
            stages.prepare_libraries(recipe, corpus)  # before they are imported

            from hf_lm.workflows.train import RunContext, limit_to_minutes, train_and_evaluate

            hardware = stages.require_hardware(recipe.training, run_dir)
            stages.check_model(recipe)
            text, tokenizer = stages.load_text(recipe, corpus, scan)
            blocks = stages.load_blocks(recipe, text, tokenizer, hardware)
            model, plan, kernels = stages.plan_and_build(
                recipe, tokenizer, blocks.counts, hardware, run_dir
            )
            context = limit_to_minutes(
                RunContext(recipe, run_dir, hardware, tokenizer, blocks, model, plan, kernels)
            )
            provenance = stages.describe_provenance(context, text)
            summary.show_plan(
                context, text.scan or scan, provenance, [*lock_notes, *changes.values()]
            )
            with run_dir.track_status(recipe, provenance, accept_changes):
                result = train_and_evaluate(context)
            summary.show_result(result, chat=context.is_chat)
        publish.publish_if_requested(recipe, run_dir)
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line of a run and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m hf_lm.run",
        description="Train or fine-tune a language model from one JSON recipe.",
    )
    parser.add_argument("--version", action="version", version=f"hf_lm {__version__}")
    add_run_options(parser)
    add_traceback_option(parser)
    options = parser.parse_args(arguments)
    command = partial(run_from_options, options)
    return run_command(command, show_traceback=options.show_traceback)


def run_from_options(options: argparse.Namespace) -> dict[str, Any]:
    """Check or train what the command line asks for, and return the plan or the result."""
    from hf_lm.terminal import console
    from hf_lm.workflows.check import check

    recipe = recipe_from_options(options)
    if options.check:
        plan = check(recipe)
        console.show_rows(plan.title, plan.rows, notes=plan.notes)
        return plan.as_json()
    with unexpected_as_error(recipe.folder):
        result = train(
            recipe, accept_changes=options.accept_changes, force_unlock=options.force_unlock
        )
    path = str(result.model_path)
    return {"model_path": path, "metrics": dict(result.metrics), "samples": [*result.samples]}


def recipe_from_options(options: argparse.Namespace) -> Recipe:
    """Load the recipe that the command line names, with its overrides."""
    from hf_lm.run_dir.directory import next_free_path
    from hf_lm.workflows.stages import find_recipe

    recipe = find_recipe(options.recipe, options.overrides, pretrained=options.pretrained)
    if options.fresh:
        recipe = recipe.model_copy(update={"output_dir": str(next_free_path(recipe.folder))})
    return recipe


def add_run_options(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add the options of a run to a parser; `hf-lm run` has the same."""
    parser.add_argument(
        "recipe",
        metavar="RECIPE",
        help="a JSON file, see recipes/README.md; or hub:USER/MODEL, the recipe of that model",
    )
    add_overrides(parser, "override one key of the recipe; may be given many times")
    parser.add_argument(
        "--from",
        dest="pretrained",
        metavar="MODEL",
        help="fine-tune this model (a folder or Hub id) instead of the recipe's own",
    )
    parser.add_argument(
        "--check", action="store_true", help="check everything, print the plan and stop"
    )
    parser.add_argument(
        "--fresh", action="store_true", help="start over in a new folder; nothing is deleted"
    )
    parser.add_argument(
        "--accept-change",
        dest="accept_changes",
        action="append",
        default=[],
        metavar="SECTION.KEY",
        help="continue a run although this key changed; may be given many times",
    )
    parser.add_argument(
        "--force-unlock",
        action="store_true",
        help="take over a folder that a run on another machine seems to hold",
    )
    return parser


def add_traceback_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that shows where an error came from; every command has it."""
    parser.add_argument(
        "--traceback",
        dest="show_traceback",
        action="store_true",
        help="if it fails, print the traceback, for developers",
    )


def add_overrides(parser: argparse.ArgumentParser, help_text: str) -> None:
    """Add the option that overrides keys of a recipe."""
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help=help_text,
    )


if __name__ == "__main__":
    sys.exit(main())
