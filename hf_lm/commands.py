"""The command line of `hf-lm`: its sub-commands and their options."""

from __future__ import annotations

import argparse
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from hf_lm import __version__
from hf_lm.run import add_overrides, add_run_options, add_traceback_option
from hf_lm.workflows.export import DTYPES

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
    add_writing_commands(commands)
    add_export_command(commands)
    add_hub_commands(commands)
    for name, command in commands.choices.items():
        add_traceback_option(command)
        if name != "chat":
            command.add_argument(
                "--json",
                action="store_true",
                help="print the result as one JSON object, and everything else to stderr",
            )
    return root


def add_training_commands(commands: Commands) -> None:
    """Add the commands about a run: run, check, status, report and verify."""
    command = commands.add_parser("run", help="train what a recipe describes")
    add_run_options(command)
    command = commands.add_parser("check", help="check a recipe and print the plan")
    add_run_options(command)
    command = commands.add_parser("status", help="show what a run is doing, on one screen")
    command.add_argument("run", metavar="RUN", type=Path, help="the folder of a run")
    command.add_argument("--watch", action="store_true", help="again and again, until it ends")
    command = commands.add_parser(
        "report", help="write the curves of a run, or of several, to a page"
    )
    command.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="the folder of a run")
    command.add_argument(
        "--output", type=Path, metavar="FILE", help="the page (report.html, in RUN if there is one)"
    )
    command.add_argument(
        "--watch", action="store_true", help="write it again whenever a run goes on, until all end"
    )
    command = commands.add_parser("verify", help="check every file of every checkpoint of a run")
    command.add_argument("run", metavar="RUN", type=Path, help="the folder of a run")


def add_data_commands(commands: Commands) -> None:
    """Add the commands about text: inspect, prepare and cache."""
    command = commands.add_parser("inspect", help="look at text before training on it")
    command.add_argument(
        "source", metavar="SOURCE", help="text, as data.source of a recipe; or a recipe"
    )
    add_overrides(command, "override a key of data, such as data.text_column=body")

    command = commands.add_parser("prepare", help="write the blocks of a recipe to a folder")
    command.add_argument("recipe", metavar="RECIPE", help="a JSON file; see recipes/README.md")
    add_overrides(command, "override a key of the recipe, such as data.block_size=512")
    command.add_argument(
        "--output", required=True, metavar="FOLDER", help="to name as data.source of a recipe"
    )
    command.add_argument(
        "--push", metavar="USER/NAME", help="upload the folder to the Hub, as a private dataset"
    )

    command = commands.add_parser("cache", help="show the prepared text in the cache, or delete it")
    command.add_argument(
        "--prune",
        type=not_negative,
        metavar="DAYS",
        help="delete what was not used for so many days; 0 deletes all",
    )


def add_model_commands(commands: Commands) -> None:
    """Add the commands about finished models: evaluate and compare."""
    command = commands.add_parser("evaluate", help="loss and bits per byte of a model on text")
    command.add_argument("model", metavar="MODEL", help="a folder or Hub id")
    command.add_argument(
        "--source",
        metavar="SOURCE",
        help="text, as data.source of a recipe; without it, the validation set of the run around "
        "MODEL",
    )
    add_overrides(command, "override a key of data or evaluation, such as data.text_column=body")

    command = commands.add_parser("compare", help="bits per byte of several models on one text")
    command.add_argument("models", metavar="MODEL", nargs="+", help="folders or Hub ids")
    command.add_argument(
        "--source", required=True, metavar="SOURCE", help="text, as data.source of a recipe"
    )
    add_overrides(command, "override a key of data, such as data.text_column=body")


def add_writing_commands(commands: Commands) -> None:
    """Add the commands that let a model write: generate and chat."""
    generate = commands.add_parser("generate", help="let a model continue a text")
    chat = commands.add_parser("chat", help="talk with a model, or write a text with it")
    for command in (generate, chat):
        command.add_argument("model", metavar="MODEL", help="a folder or Hub id")
        command.add_argument(
            "--max-new-tokens", type=positive, default=200, metavar="N", help="tokens to add (200)"
        )
        command.add_argument(
            "--temperature", type=not_negative, default=0.8, help="0: the likeliest token (0.8)"
        )
        command.add_argument("--seed", type=int, default=0, help="another seed, another text (0)")
    generate.add_argument(
        "--prompt", action="append", metavar="TEXT", help="the beginning; may be given many times"
    )
    generate.add_argument(
        "--chat", action="store_true", help="answer each prompt, by the model's chat template"
    )
    chat.add_argument("--system", metavar="TEXT", help="an instruction before the first message")


def add_export_command(commands: Commands) -> None:
    """Add the command that writes a model for another runtime."""
    command = commands.add_parser("export", help="write a model for another runtime, checked")
    command.add_argument("model", metavar="MODEL", help="a folder or Hub id")
    command.add_argument(
        "--to",
        choices=tuple(DTYPES),
        required=True,
        help="onnx: ONNX Runtime; gguf: llama.cpp, Ollama, LM Studio",
    )
    command.add_argument(
        "--dtype",
        choices=sorted({*chain(*DTYPES.values())}),
        help="of the matrices (f32 in ONNX, f16 in GGUF)",
    )
    command.add_argument("--output", required=True, type=Path, metavar="FOLDER", help="to make")


def add_hub_commands(commands: Commands) -> None:
    """Add the commands about the Hub: publish and reproduce."""
    command = commands.add_parser("publish", help="upload the model of a run to the Hub")
    command.add_argument("run", metavar="RUN", type=Path, help="the folder of a run")
    add_overrides(command, "override a key of the hub section, such as hub.model_id=USER/NAME")

    command = commands.add_parser("reproduce", help="run a published recipe and compare the result")
    command.add_argument("recipe", metavar="hub:USER/MODEL", help="a published model")
    add_overrides(command, "override a key of its recipe, such as data.source=my_texts/")


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
