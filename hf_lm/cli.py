"""The `hf-lm` command: thin sub-commands, one stage each."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hf_lm import __version__, use
from hf_lm.errors import CheckpointError, DataError, RecipeError
from hf_lm.guarded import guarded
from hf_lm.options import add_options, add_overrides, not_negative, positive
from hf_lm.run import find_recipe, prepare_libraries, read_text, run, train


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
    return guarded(partial(given.call, given))


def status(given: argparse.Namespace) -> None:
    """Show what a run is doing."""
    from hf_lm.console import show_rows
    from hf_lm.status import status_rows

    show_rows(str(given.run), status_rows(given.run))


def verify(given: argparse.Namespace) -> None:
    """Check every file of every checkpoint of a run against its manifest.

    Raises:
        DataError: there is none.
        CheckpointError: some are damaged.
    """
    from hf_lm.checkpoint import Checkpoints, verify
    from hf_lm.console import show_rows

    checkpoints = Checkpoints(given.run)
    paths = [checkpoints.path(step) for step in checkpoints.steps()]
    found = {path.name: list(verify(path)) for path in paths}
    if not found:
        raise DataError(f"{given.run}: holds no checkpoint")
    show_rows(str(given.run), [(name, "; ".join(bad) or "whole") for name, bad in found.items()])
    damaged = [f"{given.run / name}: {bad[0]}" for name, bad in found.items() if bad]
    if damaged:
        raise CheckpointError([*damaged, "a run continues from the newest that is whole"])


def publish(given: argparse.Namespace) -> None:
    """Upload the model of a run that has ended.

    Raises:
        DataError: there is none.
        UploadError: the Hub has not taken it.
    """
    from hf_lm import publish
    from hf_lm.hub import refuse_access
    from hf_lm.recipe import load_recipe
    from hf_lm.run_folder import RECIPE, RunFolder

    folder = RunFolder(given.run.absolute())
    if not folder.done:
        raise DataError(f"{given.run}: holds no run that has ended; publish what is in its model/")
    recipe = load_recipe(folder.path / RECIPE, overrides=given.overrides)
    if recipe.hub.model_id is None:
        raise RecipeError("hub.model_id: where to? add --set hub.model_id=USER/NAME")
    with folder.held():
        refuse_access(recipe.hub)
        publish.publish(folder, recipe)


def reproduce(given: argparse.Namespace) -> None:
    """Run the recipe of a published model, and show what came out otherwise."""
    from hf_lm import console
    from hf_lm.hub import settle_offline
    from hf_lm.reproduce import Published, compare

    settle_offline(console.show_note)
    there = Published.of(given.recipe)
    recipe = find_recipe(given)
    if not any(key.startswith("output_dir=") for key in given.overrides):
        folder = f"{recipe.folder}-reproduced"  # beside the run that was published, if it is here
        recipe = recipe.model_copy(update={"output_dir": folder})
    train(recipe)
    rows, notes = compare(there, recipe.folder)
    console.show_rows(f"{given.recipe} and {console.short(recipe.folder)}", rows, notes=notes)


def prepare(given: argparse.Namespace) -> None:
    """Write the blocks of a recipe to a folder that other recipes, and other people, can train on.

    Raises:
        RecipeError: the text cannot be prepared, because it is a stream or blocks already.
        DataError: the folder is somebody else's.
    """
    from hf_lm import console
    from hf_lm.dataset import find_corpus, scan_documents
    from hf_lm.dataset.sources import refuse_foreign
    from hf_lm.recipe import load_recipe

    recipe = load_recipe(given.recipe, overrides=given.overrides)
    if recipe.data.streaming:
        raise RecipeError("data.streaming = true: a stream is not prepared; set it to false")
    folder = Path(given.output).resolve()
    refuse_foreign(folder)
    corpus = find_corpus(recipe.data)
    if corpus.prepared:
        raise RecipeError(f"data.source = {json.dumps(recipe.data.source)}: is prepared already")
    scan = scan_documents(recipe.data, corpus, keep=True)
    prepare_libraries(recipe, corpus)

    from hf_lm.dataset import write_blocks

    text, tokenizer = read_text(recipe, corpus, scan)
    with console.preparing("tokenize", text.size) as report:
        write_blocks(recipe.data, text, tokenizer, folder, report=report)
    rows = [("blocks", console.short(folder)), ("train on it", f'"data": {{"source": "{folder}"}}')]
    if given.push:
        from hf_lm.dataset.prepared import push_prepared

        rows.append(("dataset", push_prepared(folder, given.push)))
    console.show_rows(f"{recipe.name}: prepared", rows, notes=scan.notes)


def cache(given: argparse.Namespace) -> None:
    """Show the prepared text that is kept, or remove what was not used for some days."""
    from hf_lm import console
    from hf_lm.dataset.cache import cache_root, entries, prune

    removed = prune(given.prune) if given.prune is not None else 0
    kept = entries()
    rows = [
        (
            f"{entry.kind} {entry.key[:8]}",
            f"{entry.size / 1e6:,.1f} MB, used {entry.age:.1f} days ago",
        )
        for entry in kept
    ]
    total = f"{sum(entry.size for entry in kept) / 1e6:,.1f} MB in {cache_root()}"
    if given.prune is not None:
        total += f"; {removed / 1e6:,.1f} MB removed"
    console.show_rows("prepared text", [*rows, ("all", total)])


if __name__ == "__main__":
    sys.exit(main())
