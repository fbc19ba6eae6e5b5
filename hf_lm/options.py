"""The options of a run, of `python -m hf_lm.run` and `hf-lm run` alike, and their kinds."""

from __future__ import annotations

import argparse


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
