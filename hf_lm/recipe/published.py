"""Prepare a recipe for publication: without local paths and the owner's keys."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def published_recipe(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe as others may read it: local paths are names, its owner's address is left out."""
    return {
        name: strip_local_paths(value) for name, value in recipe.items() if name not in PRIVATE_KEYS
    }


def strip_local_paths(value: Any) -> Any:
    """A value whose local paths are names: a project may be moved, and its text has a hash."""
    if isinstance(value, str) and value.startswith("/"):
        return Path(value).name
    if isinstance(value, Mapping):
        return {key: strip_local_paths(item) for key, item in value.items()}
    return [strip_local_paths(item) for item in value] if isinstance(value, list) else value


PRIVATE_KEYS = ("$schema", "output_dir", "hub")  # keys of a recipe that are its owner's business
