"""The `hf-lm` command: one short handler for each sub-command."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hf_lm.commands import parser
from hf_lm.run import recipe_from_options, run_from_options
from hf_lm.terminal.exit_code import run_command
from hf_lm.terminal.streams import SafeStream


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
    from hf_lm.terminal.console import console, show_rows
    from hf_lm.workflows.status import follow, status_json, status_rows

    for _ in follow([options.run]) if options.watch else (False,):
        if options.json:
            print_json(status_json(options.run))
            continue
        if options.watch:
            console.clear()
        show_rows(str(options.run), status_rows(options.run))


def report(options: argparse.Namespace) -> None:
    """Write the report of one run or several."""
    from hf_lm.report.page import write_report
    from hf_lm.run_dir.directory import REPORT
    from hf_lm.terminal.console import short, show_rows
    from hf_lm.workflows.status import follow

    folder = options.runs[0] if len(options.runs) == 1 else Path()
    path = (options.output or folder / REPORT).absolute()
    states = follow(options.runs) if options.watch else iter((False,))
    write_report(options.runs, path, reload=next(states))
    show_rows("report", [("page", short(path))])
    for at_work in states:
        write_report(options.runs, path, reload=at_work)


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


def compare(options: argparse.Namespace) -> None:
    """Show how well several models predict a text."""
    from hf_lm.workflows.evaluate import compare

    found = compare(options.models, source=options.source, overrides=options.overrides)
    if options.json:
        print_json(found.as_json())
        return
    from hf_lm.terminal.comparison import comparison_rows
    from hf_lm.terminal.console import show_rows

    show_rows(options.source, comparison_rows(found))


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


def chat(options: argparse.Namespace) -> None:
    """Talk with a model on the terminal."""
    from hf_lm.terminal.chat import hold_chat
    from hf_lm.workflows.evaluate import start_chat

    conversation = start_chat(
        options.model,
        write=SafeStream("stdout").write,
        system=options.system,
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        seed=options.seed,
    )
    hold_chat(conversation.say, conversation.reset)


def export(options: argparse.Namespace) -> None:
    """Write a model for another runtime."""
    from hf_lm.terminal import console
    from hf_lm.workflows.export import export

    difference = export(options.model, options.output, to=options.to, dtype=options.dtype)
    if difference is None:
        checked = "not compared: llama.cpp is not installed (pip install xllamacpp)"
    elif options.to == "gguf":
        checked = f"llama.cpp diverges by {difference:.1e} nats at most"
    elif options.dtype == "int8":
        checked = f"ONNX Runtime diverges by {difference:.1e} nats at most"
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


HANDLERS = {
    "run": run_from_options,
    **{
        handler.__name__: handler
        for handler in (
            *(check, status, report, verify, inspect, prepare, cache),
            *(evaluate, compare, generate, chat, export, publish, reproduce),
        )
    },
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the `hf-lm` command and return its exit code."""
    options = parser().parse_args(arguments)
    command = partial(HANDLERS[options.command], options)
    return run_command(command, show_traceback=options.show_traceback)


if __name__ == "__main__":
    sys.exit(main())
