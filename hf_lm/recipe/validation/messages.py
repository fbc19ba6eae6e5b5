"""Convert pydantic errors to one line per key."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from hf_lm.recipe.sections.base import Section
from hf_lm.recipe.sections.recipe import Recipe
from hf_lm.recipe.strict_json import NO_VALUE, Problem
from hf_lm.recipe.validation.suggestions import closest_key, nearest

RULES = {
    "greater_than": "must be > {gt}",
    "greater_than_equal": "must be >= {ge}",
    "less_than": "must be < {lt}",
    "less_than_equal": "must be <= {le}",
    "string_too_short": "must not be empty",
    "too_short": "must hold {min_length} values",
    "too_long": "must hold {max_length} values",
    "missing": "is missing",
    "literal_error": "must be {expected}",
    "string_pattern_mismatch": "must match {pattern}",
    "finite_number": "must be a finite number",
}


EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "a string",
    "bool_type": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}


JSON_NAMES = {
    str: "a string",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "an object",
    type(None): "null",
}


def sections() -> dict[str, type[Section]]:
    """Return the sections by name; the top level has the empty name."""
    found = {name: field.annotation for name, field in Recipe.model_fields.items()}
    models = {
        name: kind
        for name, kind in found.items()
        if isinstance(kind, type) and issubclass(kind, Section)
    }
    return {"": Recipe, **models}


def key_names(model: type[Section]) -> list[str]:
    """Return the keys of a section as they are in JSON."""
    return [field.alias or name for name, field in model.model_fields.items()]


def value_at(raw: Any, path: Iterable[str | int]) -> Any:
    """Return the value at a path of keys and list positions, or NO_VALUE."""
    for key in path:
        if isinstance(raw, dict):
            raw = raw.get(key, NO_VALUE)
        elif isinstance(raw, list) and isinstance(key, int) and key < len(raw):
            raw = raw[key]
        else:
            return NO_VALUE
    return raw


def key_path(error: ErrorDetails, raw: Any) -> tuple[str | int, ...]:
    """Return the part of an error's location that is in the recipe; unions add other names."""
    path: tuple[str | int, ...] = ()
    for key in error["loc"]:
        if value_at(raw, (*path, key)) is not NO_VALUE:
            path = (*path, key)
    if error["type"] in ("missing", "extra_forbidden") and path != error["loc"]:
        path = (*path, error["loc"][-1])
    return path


def validation_problems(error: ValidationError, raw: Any) -> list[Problem]:
    """Return one problem per key, however many rules its value breaks."""
    by_key: dict[tuple[str | int, ...], list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        by_key.setdefault(key_path(detail, raw), []).append(detail)
    # The items of an invalid list are reported one by one, and not again for the union around it.
    deepest = {
        path: details
        for path, details in by_key.items()
        if not any(other != path and other[: len(path)] == path for other in by_key)
        or all(detail["loc"] == path for detail in details)
    }
    return [key_problem(path, details, raw) for path, details in deepest.items()]


def key_problem(path: tuple[str | int, ...], details: list[ErrorDetails], raw: Any) -> Problem:
    """Describe everything that is wrong with one key, in one sentence."""
    keys = tuple(str(key) for key in path)
    value = value_at(raw, path)
    unknown = next((d for d in details if d["type"] == "extra_forbidden"), None)
    if unknown:
        return Problem(keys, unknown_key(keys))
    expected = [EXPECTED[d["type"]] for d in details if d["type"] in EXPECTED]
    rules = [describe(d) for d in details if d["type"] not in EXPECTED]
    # A number that is out of range also breaks the other types of its union: report the range.
    literal = next((rule for rule in rules if rule.startswith('must be "')), None)
    ranges = [rule for rule in rules if rule != literal]
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if ranges and (number or not literal):
        return Problem(keys, " or ".join(dict.fromkeys(ranges)), value)
    if literal and not expected:
        return Problem(keys, literal, value)
    actual = JSON_NAMES.get(type(value), "a value")
    what = f"is {actual}, expected" if actual not in expected else "expected"
    kinds = [*dict.fromkeys(expected), *([literal.removeprefix("must be ")] if literal else [])]
    return Problem(keys, f"{what} {' or '.join(kinds)}", value)


def describe(detail: ErrorDetails) -> str:
    """Describe the rule that an error broke."""
    text = RULES.get(detail["type"])
    context = detail.get("ctx", {})
    shown = {k: f"{v:.10g}" if isinstance(v, float) else v for k, v in context.items()}
    rule = text.format(**shown).replace("'", '"') if text else detail["msg"]
    if detail["type"] == "literal_error" and isinstance(detail["input"], str):
        near = closest_key(detail["input"], re.findall(r'"(.+?)"', rule))
        rule += f'; did you mean "{near}"?' if near else ""
    return rule


def unknown_key(keys: tuple[str, ...]) -> str:
    """Describe an unknown key: the closest known key, or the section where it belongs."""
    section, key = keys[0] if len(keys) > 1 else "", keys[-1]
    if any(word in key.lower() for word in ("token", "password", "secret", "api_key")) and (
        "per_step" not in key and "max_" not in key
    ):
        return "unknown key; a recipe must not hold a secret: use `hf auth login` or HF_TOKEN"
    known = sections()
    here = nested_model(keys[:-1]) or known.get(section, Recipe)
    if closest_key(key, key_names(here)):
        return f"unknown key; {nearest(key, key_names(here))}"
    for name, model in known.items():
        other = closest_key(key, key_names(model))
        if name != section and other:
            place = f"belongs under {name}" if name else "belongs at the top level"
            return f"unknown key; {place}" + ("" if other == key else f' as "{other}"')
    return f"unknown key; {nearest(key, key_names(here))}"


def nested_model(path: tuple[str, ...]) -> type[Section] | None:
    """Return the pydantic model of a section, or of an object inside one."""
    model: type[Section] | None = Recipe
    for key in path:
        field = model.model_fields.get(key) if model else None
        if field is None:
            return None
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
        model = next((k for k in kinds if isinstance(k, type) and issubclass(k, Section)), None)
    return model


def without(raw: Any, problems: Iterable[Problem]) -> Any:
    """Copy a raw recipe without the keys that have a problem, so that they have their default."""
    raw = copy.deepcopy(raw)
    for problem in problems:
        *parents, key = problem.path or ("",)
        parent = value_at(raw, parents)
        while isinstance(parent, list) and parents:
            *parents, key = parents  # one invalid item makes the whole list invalid
            parent = value_at(raw, parents)
        if isinstance(parent, dict):
            parent.pop(key, None)
    return raw


def validate(raw: Any) -> Recipe:
    """Validate a raw recipe, as JSON text: only then does strict mode accept lists as tuples."""
    return Recipe.model_validate_json(json.dumps(raw))
