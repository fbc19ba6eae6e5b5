"""Read a recipe, apply overrides, validate it and resolve its defaults.

Reading order:
  section.py    what all sections are
  data_section.py  every key, unit, default and range of `data`
  sections.py   of all others
  reader.py     strict JSON: repeated keys, NaN, secrets, where a comma is missing
  words.py      an unknown key in, the key that was meant out
  problems.py   pydantic's errors as one line a key
  arguments.py  `extra_args` against the installed TrainingArguments
  checks.py     clashes between keys, and warnings
  rates.py      the optimizer and the rates that "auto" stands for
  steps.py      a share of all steps, as steps
  paths.py      which strings are local paths, and where they start
  schema.py     the JSON Schema and recipes/README.md, both generated
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hf_lm import __version__
from hf_lm.errors import RecipeError
from hf_lm.recipe.defaults import resolve_auto
from hf_lm.recipe.paths import path_problems, read_template, resolve_paths, set_default_output_dir
from hf_lm.recipe.schema import SCHEMA_FILE
from hf_lm.recipe.sections.recipe import Recipe
from hf_lm.recipe.strict_json import Problem, parse, raw_problems, read_raw
from hf_lm.recipe.validation.checks import find_conflicts
from hf_lm.recipe.validation.messages import validate, validation_problems, without


def load_recipe(
    path: str | Path, *, overrides: Sequence[str] = (), pretrained: str | None = None
) -> Recipe:
    """The recipe of a JSON file; relative paths inside it start at its folder.

    Args:
        path: the file.
        overrides: `section.key=value`, the value JSON or else a string; relative paths in them
            start at the current folder.
        pretrained: model to fine-tune in place of the recipe's own model and tokenizer.

    Raises:
        RecipeError: one line a problem, all of them.
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
    """The recipe of a JSON object: as `load_recipe`, with the name that its problems begin with."""
    resolve_paths(raw, folder)
    if pretrained:
        use_pretrained(raw, pretrained)
    problems = [*read_template(raw, folder)]
    problems += [p for override in overrides for p in apply_override(raw, override)]
    if pretrained and not (isinstance(raw["model"], dict) and raw["model"].get("pretrained")):
        problems.append(Problem((), "--set model=… takes away what --from gives; set its keys"))
    set_default_output_dir(raw, folder)
    problems += raw_problems(raw)
    recipe, found = check(without(raw, problems))
    problems += found
    if problems or recipe is None:
        raise RecipeError([problem.line(name) for problem in problems])
    return resolve_auto(recipe)


def check(raw: dict[str, Any]) -> tuple[Recipe | None, list[Problem]]:
    """The recipe of a tree, and all that is wrong with it: single keys first, then clashes."""
    try:
        recipe, problems = validate(raw), []
    except ValidationError as error:
        problems = validation_problems(error, raw)
        try:  # what is left is checked too, so that nothing shows up only at the second try
            recipe = validate(without(raw, problems))
        except ValidationError:
            return None, problems
    wrong = [problem.path for problem in problems]
    for clash in find_conflicts(recipe):
        if not any(path[: len(key)] == key for path in wrong for key in clash.keys):
            problems.append(clash)
    return recipe, problems + path_problems(recipe)


def apply_override(raw: dict[str, Any], override: str) -> list[Problem]:
    """Set one key of the tree from `section.key=value`."""
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
    """Turn a recipe into one that fine-tunes `pretrained`, with that model's tokenizer."""
    given = raw.get("model")
    kept = given if isinstance(given, dict) else {}
    kept = {key: kept[key] for key in ("dropout", "lora") if key in kept}
    raw["model"] = {**kept, "pretrained": pretrained}
    given = raw.get("tokenizer")
    kept = given if isinstance(given, dict) else {}
    kept = {key: kept[key] for key in ("add_tokens", "chat_template") if key in kept}
    raw["tokenizer"] = {**kept, "pretrained": pretrained}
    resolve_paths(raw, Path.cwd(), only=("model", "pretrained"))
    resolve_paths(raw, Path.cwd(), only=("tokenizer", "pretrained"))


def recipe_dict(recipe: Recipe) -> dict[str, Any]:
    """A recipe as a JSON object with every default written out, and the version that reads it."""
    return {**recipe.model_dump(mode="json", by_alias=True), "hf_lm_version": __version__}


def recipe_text(recipe: Recipe, folder: Path) -> str:
    """A recipe as JSON with every default written out, to be kept in the folder it runs in."""
    raw = recipe_dict(recipe)
    raw["$schema"] = os.path.relpath(SCHEMA_FILE, folder)
    raw["output_dir"] = "."
    return json.dumps(raw, indent=2, ensure_ascii=False) + "\n"
