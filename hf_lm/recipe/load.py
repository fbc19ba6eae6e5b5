"""Read a recipe, apply overrides, validate it and resolve its defaults."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hf_lm import __version__
from hf_lm.errors import RecipeError
from hf_lm.recipe.defaults import resolve_auto, with_earlier_values
from hf_lm.recipe.paths import (
    SCHEMA_FILE,
    path_problems,
    read_template,
    resolve_paths,
    set_default_output_dir,
)
from hf_lm.recipe.sections.recipe import Recipe
from hf_lm.recipe.strict_json import Problem, parse, raw_problems, read_raw
from hf_lm.recipe.validation.checks import find_conflicts
from hf_lm.recipe.validation.messages import validate, validation_problems, without


def load_recipe(
    path: str | Path, *, overrides: Sequence[str] = (), pretrained: str | None = None
) -> Recipe:
    """Load a recipe from a JSON file; relative paths in it start at its directory.

    Args:
        path: the file.
        overrides: `section.key=value`, where the value is JSON, or else a string; relative paths
            in overrides start at the current directory.
        pretrained: a model to fine-tune instead of the recipe's own model and tokenizer.

    Returns:
        The recipe, validated and with a number for every "auto" that does not depend on the
        machine; it cannot be changed.

    Raises:
        RecipeError: the file cannot be read or the recipe is not valid; one line per problem.

    Example:
        >>> recipe = load_recipe("recipes/small.json", overrides=["training.max_steps=200"])
        >>> recipe.training.max_steps
        200
    """
    path = Path(path).expanduser()
    return make_recipe(
        read_raw(path),
        path.absolute().parent,
        name=str(path),
        overrides=overrides,
        pretrained=pretrained,
    )


def make_recipe(
    raw: dict[str, Any],
    folder: Path,
    *,
    name: str,
    overrides: Sequence[str] = (),
    pretrained: str | None = None,
) -> Recipe:
    """Make a recipe from a JSON object, as `load_recipe` does from a file.

    Args:
        raw: the object; it is changed.
        folder: the directory that relative paths start at.
        name: the text that every problem begins with.
        overrides: as of `load_recipe`.
        pretrained: as of `load_recipe`.

    Raises:
        RecipeError: the recipe is not valid; one line per problem.
    """
    if raw.get("hf_lm_version"):  # a run wrote it
        raw = with_earlier_values(raw)
    resolve_paths(raw, folder)
    if pretrained:
        use_pretrained(raw, pretrained)
    problems = [*read_template(raw, folder)]
    problems += [p for override in overrides for p in apply_override(raw, override)]
    if pretrained and not (isinstance(raw["model"], dict) and raw["model"].get("pretrained")):
        problems.append(Problem((), "--set model=… removes the model of --from; set single keys"))
    set_default_output_dir(raw, folder)
    problems += raw_problems(raw)
    recipe, invalid = check(without(raw, problems))
    problems += invalid
    if problems or recipe is None:
        raise RecipeError([problem.line(name) for problem in problems])
    return resolve_auto(recipe)


def check(raw: dict[str, Any]) -> tuple[Recipe | None, list[Problem]]:
    """Validate a raw recipe; return it with all problems: of single keys, then between keys."""
    try:
        recipe, problems = validate(raw), []
    except ValidationError as error:
        problems = validation_problems(error, raw)
        try:  # the rest is checked too, so that the next try shows no new problems
            recipe = validate(without(raw, problems))
        except ValidationError:
            return None, problems
    invalid = [problem.path for problem in problems]
    for conflict in find_conflicts(recipe):
        if not any(path[: len(key)] == key for path in invalid for key in conflict.keys):
            problems.append(conflict.problem)
    return recipe, problems + path_problems(recipe)


def apply_override(raw: dict[str, Any], override: str) -> list[Problem]:
    """Set one key of a raw recipe from `section.key=value`; return the problems."""
    dotted, equals, text = override.partition("=")
    keys = tuple(dotted.split("."))
    if not equals or not all(keys):
        return [Problem((), f'--set "{override}": expected section.key=value')]
    try:
        value = parse(text)
    except (ValueError, RecursionError):
        value = text
    section = raw
    for key in keys[:-1]:
        if not isinstance(section.get(key), dict):
            section[key] = {}
        section = section[key]
    section[keys[-1]] = value
    resolve_paths(raw, Path.cwd(), only=keys)
    return [*read_template(raw, Path.cwd(), only=keys)]


def use_pretrained(raw: dict[str, Any], pretrained: str) -> None:
    """Turn a raw recipe into one that fine-tunes a model, with that model's tokenizer.

    What describes the recipe's own model and its optimizer makes way.
    """
    kept_keys = {
        "model": ("dropout", "lora", "save_dtype"),
        "tokenizer": ("add_tokens", "chat_template"),
    }
    for name, keys in kept_keys.items():
        section = raw.get(name)
        section = section if isinstance(section, dict) else {}
        kept = {key: section[key] for key in keys if key in section}
        raw[name] = {**kept, "pretrained": pretrained}
        resolve_paths(raw, Path.cwd(), only=(name, "pretrained"))
    training = raw.get("training")
    if isinstance(training, dict) and training.get("optimizer", "auto") == "auto":
        for key in ("momentum", "matrix_learning_rate"):  # of muon; pretrained weights get adamw
            training.pop(key, None)


def recipe_dict(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe as a JSON object with every default and the version of hf_lm."""
    return {**recipe.model_dump(mode="json", by_alias=True), "hf_lm_version": __version__}


def recipe_text(recipe: Recipe, folder: Path) -> str:
    """Return a recipe as JSON text with every default, to be stored in its output directory."""
    raw = recipe_dict(recipe)
    raw["$schema"] = os.path.relpath(SCHEMA_FILE, folder)
    raw["output_dir"] = "."
    return json.dumps(raw, indent=2, ensure_ascii=False) + "\n"
