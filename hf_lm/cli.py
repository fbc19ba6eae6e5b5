"""The `hf-lm` command: sub-commands, their options, and one short handler each."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hf_lm import __version__
from hf_lm.errors import DataError, RecipeError
from hf_lm.run import add_options, add_overrides, find_recipe, run, train
from hf_lm.terminal.exit_code import run_command
from hf_lm.workflows import evaluate as use
from hf_lm.workflows.prepare import cache, prepare
from hf_lm.workflows.status import verify


def parser() -> argparse.ArgumentParser:
    """The sub-commands and their options."""
    options = argparse.ArgumentParser(
        prog="hf-lm", description="Train, measure and use small language models."
    )
    options.add_argument("--version", action="version", version=f"hf_lm {__version__}")
    commands = options.add_subparsers(dest="command", required=True, metavar="COMMAND")

    training = commands.add_parser("run", help="train what a recipe describes")
    add_options(training).set_defaults(call=run)
    checking = commands.add_parser("check", help="check a recipe and print the plan")
    add_options(checking).set_defaults(call=lambda given: run(replaced(given, check=True)))

    verifying = commands.add_parser("verify", help="check every checkpoint of a run")
    verifying.add_argument("run", metavar="RUN", type=Path, help="the folder of a run")
    verifying.set_defaults(call=verify)
    telling = commands.add_parser("status", help="what a run is doing, on one screen")
    telling.add_argument("run", metavar="RUN", type=Path, help="the folder of a run")
    telling.set_defaults(call=status)

    publishing = commands.add_parser("publish", help="upload the model of a run to the Hub")
    publishing.add_argument("run", metavar="RUN", type=Path, help="the folder of a run")
    add_overrides(publishing, "a key of the hub section, as hub.model_id=USER/NAME")
    publishing.set_defaults(call=publish)
    repeating = commands.add_parser(
        "reproduce", help="run a published recipe and compare the result"
    )
    repeating.add_argument("recipe", metavar="hub:USER/MODEL", help="a published model")
    add_overrides(repeating, "a key of its recipe that is another here, as data.source=my_texts/")
    repeating.set_defaults(call=reproduce, pretrained=None)

    add_data_commands(commands)
    add_model_commands(commands)
    return options


def add_data_commands(commands: Any) -> None:
    """The commands about text: prepare and cache."""
    preparing = commands.add_parser("prepare", help="write the blocks of a recipe to a folder")
    preparing.add_argument("recipe", metavar="RECIPE", help="a JSON file; see recipes/README.md")
    add_overrides(preparing, "a key of the recipe, as data.block_size=512")
    preparing.add_argument(
        "--output", required=True, metavar="FOLDER", help="to name as data.source of a recipe"
    )
    preparing.add_argument(
        "--push", metavar="USER/NAME", help="upload the folder to the Hub, as a private dataset"
    )
    preparing.set_defaults(call=prepare)

    keeping = commands.add_parser("cache", help="show what prepared text is kept, or remove it")
    keeping.add_argument(
        "--prune",
        type=not_negative,
        metavar="DAYS",
        help="remove what was not used for so many days; 0 removes all",
    )
    keeping.set_defaults(call=cache)


def add_model_commands(commands: Any) -> None:
    """The commands about a finished model: evaluate, generate and export."""
    measuring = commands.add_parser("evaluate", help="loss and bits per byte of a model on text")
    measuring.add_argument("model", metavar="MODEL", help="a folder or Hub id")
    measuring.add_argument(
        "--source",
        metavar="SOURCE",
        help='text, as data.source of a recipe; without it, what the run of "MODEL/.." held out',
    )
    add_overrides(measuring, "a key of the data or evaluation section, as data.text_column=body")
    measuring.add_argument("--json", action="store_true", help="print the metrics as JSON")
    measuring.set_defaults(call=use.evaluate)

    writing = commands.add_parser("generate", help="let a model continue a text")
    writing.add_argument("model", metavar="MODEL", help="a folder or Hub id")
    writing.add_argument(
        "--prompt", action="append", metavar="TEXT", help="the beginning; may be given many times"
    )
    writing.add_argument(
        "--max-new-tokens", type=positive, default=200, metavar="N", help="tokens to add (200)"
    )
    writing.add_argument(
        "--temperature", type=not_negative, default=0.8, help="0 takes the likeliest token (0.8)"
    )
    writing.add_argument(
        "--chat", action="store_true", help="answer each prompt, by the model's chat template"
    )
    writing.add_argument("--seed", type=int, default=0, help="another seed, another text (0)")
    writing.set_defaults(call=use.generate)

    turning = commands.add_parser("export", help="write a model for another runtime, checked")
    turning.add_argument("model", metavar="MODEL", help="a folder or Hub id")
    turning.add_argument("--to", choices=("onnx",), required=True, help="for ONNX Runtime")
    turning.add_argument("--output", required=True, type=Path, metavar="FOLDER", help="to make")
    turning.set_defaults(call=use.export)


def replaced(given: argparse.Namespace, **values: Any) -> argparse.Namespace:
    """The same options with some values replaced."""
    return argparse.Namespace(**{**vars(given), **values})


def main(arguments: Sequence[str] | None = None) -> int:
    """The `hf-lm` command; returns its exit code."""
    given = parser().parse_args(arguments)
    return run_command(partial(given.call, given))


def status(given: argparse.Namespace) -> None:
    """Show what a run is doing."""
    from hf_lm.terminal.console import show_rows
    from hf_lm.workflows.status import status_rows

    show_rows(str(given.run), status_rows(given.run))


def publish(given: argparse.Namespace) -> None:
    """Upload the model of a run that has ended.

    Raises:
        DataError: there is none.
        UploadError: the Hub has not taken it.
    """
    from hf_lm.hub.access import check_write_access
    from hf_lm.recipe import load_recipe
    from hf_lm.run_dir.directory import RECIPE, RunDirectory
    from hf_lm.workflows import publish

    folder = RunDirectory(given.run.absolute())
    if not folder.is_complete:
        raise DataError(f"{given.run}: holds no run that has ended; publish what is in its model/")
    recipe = load_recipe(folder.path / RECIPE, overrides=given.overrides)
    if recipe.hub.model_id is None:
        raise RecipeError("hub.model_id: where to? add --set hub.model_id=USER/NAME")
    with folder.lock():
        check_write_access(recipe.hub)
        publish.publish(folder, recipe)


def reproduce(given: argparse.Namespace) -> None:
    """Run the recipe of a published model, and show what came out otherwise."""
    from hf_lm.hub.access import go_offline_if_unreachable
    from hf_lm.terminal import console
    from hf_lm.workflows.reproduce import Published, compare

    go_offline_if_unreachable(console.show_note)
    there = Published.of(given.recipe)
    recipe = find_recipe(given)
    if not any(key.startswith("output_dir=") for key in given.overrides):
        folder = f"{recipe.folder}-reproduced"  # beside the run that was published, if it is here
        recipe = recipe.model_copy(update={"output_dir": folder})
    train(recipe)
    rows, notes = compare(there, recipe.folder)
    console.show_rows(f"{given.recipe} and {console.short(recipe.folder)}", rows, notes=notes)


if __name__ == "__main__":
    sys.exit(main())


def positive(text: str) -> int:
    """A whole number above 0."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def not_negative(text: str) -> float:
    """A number that is not below 0."""
    number = float(text)
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 up")
    return number
