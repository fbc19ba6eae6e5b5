"""Prepare a recipe for publication: without local paths and the owner's keys."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

PRIVATE_KEYS = ("$schema", "output_dir", "hub")  # they concern the owner of a recipe only


def published_recipe(recipe: Mapping[str, object]) -> dict[str, object]:
    """Return a recipe without private keys, and with names instead of local paths."""
    return {
        name: strip_local_paths(value) for name, value in recipe.items() if name not in PRIVATE_KEYS
    }


def strip_local_paths(value: object) -> object:
    """Replace the local paths in a value by their last part."""
    if isinstance(value, str) and Path(value).is_absolute():
        return Path(value).name
    if isinstance(value, Mapping):
        return {key: strip_local_paths(item) for key, item in value.items()}
    return [strip_local_paths(item) for item in value] if isinstance(value, list) else value
