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
from hf_lm.system.files import json_safe
from hf_lm.system.processes import is_main_process
from hf_lm.terminal.exit_code import run_command
from hf_lm.terminal.streams import SafeStream

Values = dict[str, Any]  # the result of a command, for --json; docs/json.md lists the fields


def print_json(values: Values) -> None:
    """Print one JSON object on one line; NaN and infinity become strings."""
    text = json.dumps(json_safe(values), ensure_ascii=False, allow_nan=False)
    SafeStream("stdout").write(f"{text}\n")


def check(options: argparse.Namespace) -> Values:
    """Check a recipe and print the plan."""
    from hf_lm.terminal.console import show_rows
    from hf_lm.workflows.check import check

    result = check(recipe_from_options(options))
    if not options.json:
        show_rows(result.title, result.rows, notes=result.notes)
    return result.as_json()


def status(options: argparse.Namespace) -> Values:
    """Show what a run is doing; a watched one again at every change, a line of JSON each."""
    from hf_lm.terminal.console import console, show_rows
    from hf_lm.workflows.status import follow, status_json, status_rows

    if not options.watch:
        if not options.json:
            show_rows(str(options.run), status_rows(options.run))
        return status_json(options.run)
    for _ in follow([options.run]):
        if options.json:
            print_json(status_json(options.run))
        else:
            console.clear()
            show_rows(str(options.run), status_rows(options.run))
    return {}


def report(options: argparse.Namespace) -> Values:
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
    return {"page": str(path)}


def verify(options: argparse.Namespace) -> Values:
    """Verify every checkpoint of a run."""
    from hf_lm.workflows.status import verify_run

    return {"checkpoints": verify_run(options.run)}


def inspect(options: argparse.Namespace) -> Values:
    """Show what a text is like."""
    from hf_lm.data.inspection import inspect_source

    found = inspect_source(options.source, options.overrides)
    if not options.json:
        from hf_lm.terminal.console import show_rows
        from hf_lm.terminal.inspection import inspection_rows, shown_rows

        show_rows(options.source, inspection_rows(found), notes=found.notes)
        show_rows("documents", shown_rows(found))
    return found.as_json()


def prepare(options: argparse.Namespace) -> Values:
    """Write the blocks of a recipe to a folder."""
    from hf_lm.recipe import load_recipe
    from hf_lm.workflows.prepare import prepare

    recipe = load_recipe(options.recipe, overrides=options.overrides)
    url = prepare(recipe, options.output, push=options.push)
    return {"blocks": str(Path(options.output).absolute()), "url": url}


def cache(options: argparse.Namespace) -> Values:
    """Show or prune the cache of prepared text."""
    from hf_lm.workflows.prepare import show_cache

    return show_cache(prune_days=options.prune)


def evaluate(options: argparse.Namespace) -> Values:
    """Print loss, perplexity, accuracy and bits per byte of a model."""
    from hf_lm.evaluation.metrics import metric_rows
    from hf_lm.terminal.console import show_rows
    from hf_lm.workflows.evaluate import evaluate

    metrics: Values = evaluate(options.model, source=options.source, overrides=options.overrides)
    if not options.json:
        show_rows(options.model, metric_rows(metrics))
    return metrics


def compare(options: argparse.Namespace) -> Values:
    """Show how well several models predict a text."""
    from hf_lm.terminal.comparison import comparison_rows
    from hf_lm.terminal.console import show_rows
    from hf_lm.workflows.evaluate import compare

    found = compare(options.models, source=options.source, overrides=options.overrides)
    if not options.json:
        show_rows(options.source, comparison_rows(found))
    return found.as_json()


def generate(options: argparse.Namespace) -> Values:
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
    samples = [{"prompt": p, "text": text} for p, text in zip(prompts, texts, strict=True)]
    separator = "\n" if options.chat else ""
    for sample in () if options.json else samples:
        SafeStream("stdout").write(f"{sample['prompt']}{separator}{sample['text']}\n")
    return {"samples": samples}


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


def export(options: argparse.Namespace) -> Values:
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
    folder = options.output.absolute()
    if not options.json:
        rows = [(options.to, console.short(folder)), ("checked", checked)]
        console.show_rows(options.model, rows)
    return {options.to: str(folder), "difference": difference}


def publish(options: argparse.Namespace) -> Values:
    """Upload the model of a finished run."""
    from hf_lm.workflows.publish import publish

    return {"url": publish(options.run, overrides=options.overrides)}


def reproduce(options: argparse.Namespace) -> Values:
    """Run the recipe of a published model and show how the result differs."""
    from hf_lm.run import train
    from hf_lm.terminal import console
    from hf_lm.workflows.reproduce import Published, compare, reproduction_recipe

    published = Published.fetch(options.recipe)
    recipe = reproduction_recipe(options.recipe, options.overrides)
    train(recipe)
    found = compare(published, recipe.folder)
    if not options.json:
        title = f"{options.recipe} and {console.short(recipe.folder)}"
        console.show_rows(title, found.rows, notes=found.notes)
    return {"run": str(recipe.folder), **found.as_json()}


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
    command = partial(run_handler, options)
    return run_command(command, show_traceback=options.show_traceback)


def run_handler(options: argparse.Namespace) -> None:
    """Run the handler of a sub-command; with --json, stdout gets its result alone."""
    handler = HANDLERS[options.command]
    if not getattr(options, "json", False):
        handler(options)
        return
    from hf_lm.terminal.console import shown_on_stderr

    with shown_on_stderr():
        values = handler(options)
    if values and is_main_process():
        print_json(values)


if __name__ == "__main__":
    sys.exit(main())
