"""The `hf-lm` command: sub-commands, their options, and one short handler each."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_lm import __version__
from hf_lm.run import (
    add_overrides,
    add_run_options,
    add_traceback_option,
    recipe_from_options,
    run_from_options,
)
from hf_lm.terminal.exit_code import run_command
from hf_lm.terminal.streams import SafeStream

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def parser() -> argparse.ArgumentParser:
    """Build the parser of all sub-commands."""
    root = argparse.ArgumentParser(
        prog="hf-lm", description="Train, evaluate and use small language models."
    )
    root.add_argument("--version", action="version", version=f"hf_lm {__version__}")
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_training_commands(commands)
    add_data_commands(commands)
    add_model_commands(commands)
    add_hub_commands(commands)
    for command in commands.choices.values():
        add_traceback_option(command)
    return root


def add_training_commands(commands: Commands) -> None:
    """Add the commands about a run: run, check, status and verify."""
    command = commands.add_parser("run", help="train what a recipe describes")
    add_run_options(command).set_defaults(handler=run_from_options)
    command = commands.add_parser("check", help="check a recipe and print the plan")
    add_run_options(command).set_defaults(handler=check)
    command.add_argument("--json", action="store_true", help="print the plan as JSON")
    command = commands.add_parser("status", help="show what a run is doing, on one screen")
    command.add_argument("run", metavar="RUN", type=Path, help="the folder of a run")
    command.add_argument("--json", action="store_true", help="print the state as JSON")
    command.set_defaults(handler=status)
    command = commands.add_parser(
        "report", help="write the curves of a run, or of several, to a page"
    )
    command.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="the folder of a run")
    command.add_argument(
        "--output", type=Path, metavar="FILE", help="the page (report.html, in RUN if there is one)"
    )
    command.set_defaults(handler=report)
    command = commands.add_parser("verify", help="check every file of every checkpoint of a run")
    command.add_argument("run", metavar="RUN", type=Path, help="the folder of a run")
    command.set_defaults(handler=verify)


def add_data_commands(commands: Commands) -> None:
    """Add the commands about text: inspect, prepare and cache."""
    command = commands.add_parser("inspect", help="look at text before training on it")
    command.add_argument(
        "source", metavar="SOURCE", help="text, as data.source of a recipe; or a recipe"
    )
    add_overrides(command, "override a key of data, such as data.text_column=body")
    command.add_argument("--json", action="store_true", help="print what was found as JSON")
    command.set_defaults(handler=inspect)

    command = commands.add_parser("prepare", help="write the blocks of a recipe to a folder")
    command.add_argument("recipe", metavar="RECIPE", help="a JSON file; see recipes/README.md")
    add_overrides(command, "override a key of the recipe, such as data.block_size=512")
    command.add_argument(
        "--output", required=True, metavar="FOLDER", help="to name as data.source of a recipe"
    )
    command.add_argument(
        "--push", metavar="USER/NAME", help="upload the folder to the Hub, as a private dataset"
    )
    command.set_defaults(handler=prepare)

    command = commands.add_parser("cache", help="show the prepared text in the cache, or delete it")
    command.add_argument(
        "--prune",
        type=not_negative,
        metavar="DAYS",
        help="delete what was not used for so many days; 0 deletes all",
    )
    command.set_defaults(handler=cache)


def add_model_commands(commands: Commands) -> None:
    """Add the commands about a finished model: evaluate, generate and export."""
    command = commands.add_parser("evaluate", help="loss and bits per byte of a model on text")
    command.add_argument("model", metavar="MODEL", help="a folder or Hub id")
    command.add_argument(
        "--source",
        metavar="SOURCE",
        help="text, as data.source of a recipe; without it, the validation set of the run around "
        "MODEL",
    )
    add_overrides(command, "override a key of data or evaluation, such as data.text_column=body")
    command.add_argument("--json", action="store_true", help="print the metrics as JSON")
    command.set_defaults(handler=evaluate)

    command = commands.add_parser("generate", help="let a model continue a text")
    command.add_argument("model", metavar="MODEL", help="a folder or Hub id")
    command.add_argument(
        "--prompt", action="append", metavar="TEXT", help="the beginning; may be given many times"
    )
    command.add_argument(
        "--max-new-tokens", type=positive, default=200, metavar="N", help="tokens to add (200)"
    )
    command.add_argument(
        "--temperature", type=not_negative, default=0.8, help="0 takes the likeliest token (0.8)"
    )
    command.add_argument(
        "--chat", action="store_true", help="answer each prompt, by the model's chat template"
    )
    command.add_argument("--seed", type=int, default=0, help="another seed, another text (0)")
    command.set_defaults(handler=generate)

    command = commands.add_parser("export", help="write a model for another runtime, checked")
    command.add_argument("model", metavar="MODEL", help="a folder or Hub id")
    command.add_argument(
        "--to",
        choices=("onnx", "gguf"),
        required=True,
        help="onnx: ONNX Runtime; gguf: llama.cpp, Ollama, LM Studio",
    )
    command.add_argument(
        "--dtype", choices=("f32", "f16", "bf16", "q8_0"), help="of the matrices in GGUF (f16)"
    )
    command.add_argument("--output", required=True, type=Path, metavar="FOLDER", help="to make")
    command.set_defaults(handler=export)


def add_hub_commands(commands: Commands) -> None:
    """Add the commands about the Hub: publish and reproduce."""
    command = commands.add_parser("publish", help="upload the model of a run to the Hub")
    command.add_argument("run", metavar="RUN", type=Path, help="the folder of a run")
    add_overrides(command, "override a key of the hub section, such as hub.model_id=USER/NAME")
    command.set_defaults(handler=publish)

    command = commands.add_parser("reproduce", help="run a published recipe and compare the result")
    command.add_argument("recipe", metavar="hub:USER/MODEL", help="a published model")
    add_overrides(command, "override a key of its recipe, such as data.source=my_texts/")
    command.set_defaults(handler=reproduce)


def positive(text: str) -> int:
    """Parse a whole number above 0."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def not_negative(text: str) -> float:
    """Parse a finite number that is not below 0."""
    number = float(text)
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 up")
    return number


def print_json(values: dict[str, Any]) -> None:
    """Print one JSON object on one line."""
    SafeStream("stdout").write(json.dumps(values) + "\n")


def check(options: argparse.Namespace) -> None:
    """Check a recipe and print the plan."""
    from hf_lm.workflows.check import check

    result = check(recipe_from_options(options))
    if options.json:
        print_json(result.as_json())
        return
    from hf_lm.terminal.console import show_rows

    show_rows(result.title, result.rows, notes=result.notes)


def status(options: argparse.Namespace) -> None:
    """Show what a run is doing."""
    from hf_lm.terminal.console import show_rows
    from hf_lm.workflows.status import status_json, status_rows

    if options.json:
        print_json(status_json(options.run))
        return
    show_rows(str(options.run), status_rows(options.run))


def report(options: argparse.Namespace) -> None:
    """Write the report of one run or several."""
    from hf_lm.report.page import write_report
    from hf_lm.run_dir.directory import REPORT
    from hf_lm.terminal.console import short, show_rows

    folder = options.runs[0] if len(options.runs) == 1 else Path()
    path = (options.output or folder / REPORT).absolute()
    write_report(options.runs, path)
    show_rows("report", [("page", short(path))])


def verify(options: argparse.Namespace) -> None:
    """Verify every checkpoint of a run."""
    from hf_lm.workflows.status import verify_run

    verify_run(options.run)


def inspect(options: argparse.Namespace) -> None:
    """Show what a text is like."""
    from hf_lm.data.inspection import inspect_source

    found = inspect_source(options.source, options.overrides)
    if options.json:
        print_json(found.as_json())
        return
    from hf_lm.terminal.console import show_rows
    from hf_lm.terminal.inspection import inspection_rows, shown_rows

    show_rows(options.source, inspection_rows(found), notes=found.notes)
    show_rows("documents", shown_rows(found))


def prepare(options: argparse.Namespace) -> None:
    """Write the blocks of a recipe to a folder."""
    from hf_lm.recipe import load_recipe
    from hf_lm.workflows.prepare import prepare

    recipe = load_recipe(options.recipe, overrides=options.overrides)
    prepare(recipe, options.output, push=options.push)


def cache(options: argparse.Namespace) -> None:
    """Show or prune the cache of prepared text."""
    from hf_lm.workflows.prepare import show_cache

    show_cache(prune_days=options.prune)


def evaluate(options: argparse.Namespace) -> None:
    """Print loss, perplexity, accuracy and bits per byte of a model."""
    from hf_lm.workflows.evaluate import evaluate

    metrics: dict[str, Any] = evaluate(
        options.model, source=options.source, overrides=options.overrides
    )
    if options.json:
        print_json(metrics)
        return
    from hf_lm.evaluation.metrics import metric_rows
    from hf_lm.terminal.console import show_rows

    show_rows(options.model, metric_rows(metrics))


def generate(options: argparse.Namespace) -> None:
    """Print each prompt with what the model adds to it."""
    from hf_lm.workflows.evaluate import generate

    prompts = options.prompt or [""]
    texts = generate(
        options.model,
        prompts,
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        seed=options.seed,
        chat=options.chat,
    )
    separator = "\n" if options.chat else ""
    for prompt, text in zip(prompts, texts, strict=True):
        SafeStream("stdout").write(f"{prompt}{separator}{text}\n")


def export(options: argparse.Namespace) -> None:
    """Write a model for another runtime."""
    from hf_lm.terminal import console
    from hf_lm.workflows.export import export

    difference = export(options.model, options.output, to=options.to, dtype=options.dtype)
    if difference is None:
        checked = "not compared: llama.cpp is not installed (pip install xllamacpp)"
    elif options.to == "gguf":
        checked = f"llama.cpp diverges by {difference:.1e} nats at most"
    else:
        checked = f"logits within {difference:.1e} of the largest, on ONNX Runtime"
    rows = [(options.to, console.short(options.output.absolute())), ("checked", checked)]
    console.show_rows(options.model, rows)


def publish(options: argparse.Namespace) -> None:
    """Upload the model of a finished run."""
    from hf_lm.workflows.publish import publish

    publish(options.run, overrides=options.overrides)


def reproduce(options: argparse.Namespace) -> None:
    """Run the recipe of a published model and show how the result differs."""
    from hf_lm.run import train
    from hf_lm.terminal import console
    from hf_lm.workflows.reproduce import Published, compare, reproduction_recipe

    published = Published.fetch(options.recipe)
    recipe = reproduction_recipe(options.recipe, options.overrides)
    train(recipe)
    rows, notes = compare(published, recipe.folder)
    console.show_rows(f"{options.recipe} and {console.short(recipe.folder)}", rows, notes=notes)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the `hf-lm` command and return its exit code."""
    options = parser().parse_args(arguments)
    command = partial(options.handler, options)
    return run_command(command, show_traceback=options.show_traceback)


if __name__ == "__main__":
    sys.exit(main())
